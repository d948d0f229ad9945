#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP client: it connects to a server, reads the server's greeting to its
 * end, sends a reply, and closes. Where its steps stand:
 *
 * - 2 connect: {@linkcode connect}, and 6 close: `run` of the class `TimedSession`
 * - 3 read the greeting, 4 to its end, 5 reply: {@linkcode reply}
 *
 * As a command: `deno run --allow-net client.ts`.
 *
 * As a library, with a protocol of your own in place of steps 3 to 5. This client
 * sends a line and prints the one that comes back:
 *
 * ```ts
 * import { connect, Reader, sendAll } from "./client.ts";
 *
 * const answer = await connect({
 *   port: 9000,
 *   handler: async (connection) => {
 *     await sendAll(connection, "hello\n");
 *     return await new Reader(connection).readLine();
 *   },
 * });
 * console.log(answer);
 * ```
 *
 * @module
 */

// In full: a script that runs alone has no deno.json to look a name up in.
// deno-lint-ignore no-import-prefix
import { parseArgs } from "jsr:@std/cli@^1.0.32/parse-args";

/**
 * The exchange with the server, steps 3 to 5. The reply ends with the close.
 *
 * @param answer Gives what the server is sent for its greeting.
 * @param reader One of your own shows what came of a greeting that did not end.
 * @returns The greeting.
 * @throws {Deno.errors.UnexpectedEof} If the server ended without a greeting.
 * @throws {Deno.errors.InvalidData} If the greeting is longer than 65,536 bytes.
 * @throws {Error} What `answer` throws, and what else ended the connection.
 */
export async function reply(
  connection: Deno.TcpConn,
  answer: (greeting: string) => string,
  reader: Pick<Reader, "readAll"> = new Reader(connection),
): Promise<string> {
  // 3. Read the greeting, 4. to its end: there the server has half-closed.
  const greeting = await reader.readAll();
  if (greeting === "") throw new Deno.errors.UnexpectedEof("no greeting");
  await sendAll(connection, answer(greeting)); // 5. Reply.
  return greeting;
}

/** Options of {@linkcode connect}. */
export interface ConnectOptions<T> {
  /**
   * All that is done on the connection. It is closed when the handler has settled,
   * and earlier by the time, `signal` or `session.end`: reads and writes then
   * reject. Await, or stop, all that it starts, for instance with `session.signal`:
   * what is left running meets a closed connection, and an error that nobody awaits
   * ends the program. Read to the end, or half-close and read on, before you return:
   * a close with unread input resets, which can lose what was sent last.
   */
  handler: (connection: Deno.TcpConn, session: Session) => T | Promise<T>;
  /** The server's address, or a name of it: 127.0.0.1 by default. */
  hostname?: string;
  /** The server's port, 8888 by default. */
  port?: number;
  /**
   * Milliseconds for connecting and the handler, or from the last `session.renew()`:
   * 10,000 by default, above 0 and below 2 ** 31, or `Infinity`.
   */
  timeout?: number;
  /**
   * Milliseconds to try again, each time with its own `timeout`, whatever keeps it
   * from connecting but a missing permission or wrong arguments: 0 by default.
   */
  wait?: number;
  /** Turns Nagle's algorithm off, which holds small writes back. By default true. */
  noDelay?: boolean;
  /** Aborting it closes the connection, or ends the tries. */
  signal?: AbortSignal;
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  reply: "你好服務器",
  timeout: 10_000, // milliseconds
  wait: 0, // milliseconds
};

/**
 * Connects, runs the handler, closes, and resolves to what the handler gave.
 *
 * @throws {RangeError} If `timeout` or `wait` is out of its range.
 * @throws {DOMException} Named `TimeoutError`, if the time was up.
 * @throws {Error} What the handler or `Deno.connect` throws, such as
 * `Deno.errors.ConnectionRefused`, and the reason of an aborted `signal`.
 */
export async function connect<T>(options: ConnectOptions<T>): Promise<T> {
  const { hostname = DEFAULTS.hostname, port = DEFAULTS.port } = options;
  const { timeout = DEFAULTS.timeout, wait = DEFAULTS.wait } = options;
  const { handler, noDelay, signal } = options;
  if (!(wait >= 0)) throw new RangeError(`wait must be from 0, not ${wait}`);
  const waitEnds = performance.now() + wait;
  for (;;) {
    signal?.throwIfAborted();
    const session = new TimedSession(timeout);
    const ended = new Promise((resolve) => session.signal.onabort = resolve);
    const looks = TimedSession.watch([session]);
    const abort = () => session.end(signal?.reason);
    signal?.addEventListener("abort", abort);
    let isConnected = false;
    try {
      const server = { hostname, port, signal: session.signal };
      const connection = await Deno.connect(server); // 2. Connect.
      // Where nothing listens on a port that Linux gives to clients, it may give a
      // client that very port, and so connect it to itself.
      const { localAddr, remoteAddr } = connection;
      isConnected = format(localAddr) !== format(remoteAddr);
      // 3 to 5. Run the handler. 6. Close.
      if (isConnected) return await session.run(connection, handler, noDelay);
      connection.close();
      throw new Deno.errors.ConnectionRefused("connected to itself");
    } catch (error) {
      // Without the permission, or with wrong arguments, no other try helps.
      const final = [Deno.errors.NotCapable, TypeError, RangeError, URIError];
      const isFinal = final.some((type) => error instanceof type);
      if (isConnected || isFinal || performance.now() >= waitEnds) throw error;
      session.renew(1); // A pause of up to 100 ms, which an abort ends, too.
      await ended;
    } finally {
      clearInterval(looks);
      signal?.removeEventListener("abort", abort);
    }
  }
}

// The command

const HELP = `Connects to a TCP server, reads its greeting and sends a reply.

usage: deno run --allow-net client.ts [flags]

  --host HOST        the server's address (${DEFAULTS.hostname})
  --port, -p PORT    the server's port (${DEFAULTS.port})
  --reply TEXT       what the server is sent (${DEFAULTS.reply})
  --timeout SECONDS  for the whole exchange (${DEFAULTS.timeout / 1000})
  --wait SECONDS     to try again, whatever fails (${DEFAULTS.wait / 1000})
  --quiet, -q        print only what comes from the server (off)
  --help, -h         show this help (off)

example: deno run --allow-net client.ts --port 9000 --reply "Hello, server"`;

function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    reply: DEFAULTS.reply,
    timeout: `${DEFAULTS.timeout / 1000}`,
    wait: `${DEFAULTS.wait / 1000}`,
  }, ["quiet", "help"]);
  return {
    ...flags,
    hostname: flags.host.replace(/^\[(.*)\]$/, "$1"), // as a URL has it
    port: numberOf("port", flags.port, 1, 65_535),
    timeout: 1000 * numberOf("timeout", flags.timeout, 0.001),
    wait: 1000 * numberOf("wait", flags.wait, 0),
  };
}

/** Runs the command. Gives 0 for success, 1 for failure, 2 for wrong flags. */
export async function main(args: string[]): Promise<number> {
  let flags: ReturnType<typeof parse>;
  try {
    flags = parse(args);
  } catch (error) {
    report(`error: ${(error as Error).message}; see --help`);
    return 2;
  }
  if (flags.help) return print(HELP) ? 0 : 1;
  let reader: Reader | undefined; // set once it is connected
  let isPrinted = true; // After a line that could not be printed, no more.
  const show = (line: string) => isPrinted &&= print(line);
  const handler = async (connection: Deno.TcpConn) => {
    reader = new Reader(connection);
    if (!flags.quiet) show(`Connected to ${format(connection.remoteAddr)}`);
    await reply(connection, (greeting) => {
      show(`${flags.quiet ? "" : "Greeting: "}${shown(greeting)}`);
      return flags.reply;
    }, reader);
    if (!flags.quiet) show(`Replied: ${shown(flags.reply)}`);
  };
  try {
    await connect({ ...flags, handler, noDelay: false }); // for one message
    return isPrinted ? 0 : 1;
  } catch (error) {
    report(`error: ${explain(error as Error, format(flags), reader)}`);
    return 1;
  }
}

/** Prints, or says why that can't be done, such as a full disk. */
function print(text: string): boolean {
  try {
    console.log(text);
    return true;
  } catch (error) {
    report(`error: cannot print: ${(error as Error).message}`);
    return false;
  }
}

function explain(error: Error, server: string, reader?: Reader): string {
  if (error instanceof DOMException) {
    if (reader?.buffered.length) {
      const some = shown(decoder.decode(reader.buffered));
      return `the greeting of ${server} has not ended: it ends when the server closes, or half-closes; so far it is: ${some}`;
    }
    return `${server} took too long; give it more time with --timeout SECONDS`;
  }
  if (error instanceof Deno.errors.UnexpectedEof) {
    return `${server} closed without a greeting`;
  }
  if (error instanceof Deno.errors.InvalidData) {
    return `${server} sent a greeting longer than ${MAX} bytes`;
  }
  if (reader) return `${server} reset the connection`;
  if (error instanceof Deno.errors.ConnectionRefused) {
    return `nothing listens on ${server}; start the server, or use --wait SECONDS`;
  }
  if (error instanceof Deno.errors.NotCapable) {
    return `no permission to connect to ${server}; run with --allow-net=${server}`;
  }
  return `cannot reach ${server}: ${error.message}`;
}

// From here to the last line, both scripts are the same: each has to run alone.

/** The time of a connection, and its early end. Each handler is given one. */
export interface Session {
  /**
   * Starts the time anew: that of the option, or other milliseconds until the next
   * call. Throws a `RangeError` if they are out of the option's range.
   */
  renew(timeout?: number): void;
  /**
   * Closes early: pending reads and writes reject. The reason is what `onError`
   * gets, or what `connect` rejects with. Does nothing after the end.
   */
  end(reason: unknown): void;
  /** Aborted at any early end, with its reason: for what else is awaited. */
  readonly signal: AbortSignal;
}

/** A session whose time, in milliseconds, starts as it is made. */
class TimedSession implements Session {
  #due = 0; // when its time is up
  #connection?: Deno.TcpConn;
  #index = 0; // where it stands among the others
  #end?: { isEarly: boolean; reason?: unknown };
  #controller?: AbortController; // made where `signal` is asked for

  constructor(readonly timeout: number) {
    this.renew();
  }

  /** Ends those whose time is up, until the interval is cleared. */
  static watch(sessions: TimedSession[]): ReturnType<typeof setInterval> {
    let lastLook = -Infinity;
    return setInterval(() => {
      for (const session of sessions) {
        // Not what is late for the first time: after a standstill (Ctrl-Z, a
        // paused container), what has long arrived has 50 ms to be read.
        if (session.#end || session.#due > lastLook) continue;
        session.end(new DOMException("time is up", "TimeoutError"));
      }
      lastLook = performance.now();
    }, 50);
  }

  renew(timeout: number = this.timeout): void {
    if (!(timeout > 0 && timeout < 2 ** 31 || timeout === Infinity)) {
      throw new RangeError(`timeout is not above 0, below 2 ** 31: ${timeout}`);
    }
    this.#due = performance.now() + timeout;
  }

  end(reason: unknown): void {
    if (this.#end) return;
    this.#end = { isEarly: true, reason };
    this.#connection?.[Symbol.dispose](); // not `close()`: it may be closed
    this.#controller?.abort(reason);
  }

  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#end?.isEarly) this.#controller.abort(this.#end.reason);
    return this.#controller.signal;
  }

  /** Runs the handler and closes. Throws the reason of an early end. */
  async run<T>(
    connection: Deno.TcpConn,
    handler: (connection: Deno.TcpConn, session: Session) => T | Promise<T>,
    noDelay = true,
    sessions: TimedSession[] = [],
  ): Promise<T> {
    this.#connection = connection;
    this.#index = sessions.push(this) - 1;
    try {
      if (noDelay) connection.setNoDelay();
      // It may have ended in the very turn in which the connection was made.
      const result = this.#end ? undefined : await handler(connection, this);
      if (this.#end) throw this.#end.reason;
      return result as T;
    } catch (error) {
      const { BadResource, Interrupted } = Deno.errors; // of reads and writes
      const isCut = [BadResource, Interrupted].some((e) => error instanceof e);
      throw this.#end && isCut ? this.#end.reason : error;
    } finally {
      this.#end ??= { isEarly: false };
      connection[Symbol.dispose](); // 6. Close, on every path.
      // The last one takes its place. A `Set` costs a busy server a tenth more.
      const last = sessions.pop()!;
      if (last !== this) sessions[last.#index = this.#index] = last;
    }
  }
}

const MAX = 65_536; // bytes of a message
const encoder = new TextEncoder();
// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const LAST = Symbol.for("sendAll"); // a writer's last call, in either script

/**
 * Sends all of the data, a text in UTF-8: one write may take only a part. Of
 * several at once on one connection, each is whole, in the order of the calls.
 * Until then, leave the bytes as they are. Rejects with what `write` rejects with.
 */
export function sendAll(
  writer: Pick<Deno.Conn, "write">,
  data: string | Uint8Array,
): Promise<void> {
  const calls = writer as { [LAST]?: Promise<void> };
  const send = async () => {
    let rest = typeof data === "string" ? encoder.encode(data) : data;
    while (rest.length > 0) rest = rest.subarray(await writer.write(rest));
  };
  return calls[LAST] = calls[LAST]?.then(send, send) ?? send();
}

/**
 * Reads lines, so many bytes, or the rest, in turn: one read is not one message.
 * More bytes than the limit, 65,536 by default, are `InvalidData`, as a peer may
 * send any. Texts are UTF-8, with U+FFFD for other bytes. Await each call.
 */
export class Reader {
  #buffer = new Uint8Array(128); // small at first: a silent peer holds it
  #start = 0; // What has come and is not taken yet stands from here
  #end = 0; // to here.
  #isEnded = false;

  /** Reads from a connection, `Deno.stdin`, or what else has such a `read`. */
  constructor(readonly source: Pick<Deno.Conn, "read">, readonly limit = MAX) {}

  /** What has come and is not taken yet. */
  get buffered(): Uint8Array<ArrayBuffer> {
    return this.#buffer.subarray(this.#start, this.#end);
  }

  /** The next line, without its `\n` or `\r\n`, or `null` after the last. */
  async readLine(): Promise<string | null> {
    for (let searched = 0;;) {
      const bytes = this.buffered;
      const end = bytes.indexOf(0x0a, searched); // \n
      searched = bytes.length;
      const all = end < 0 ? searched : end;
      // Where no line end has come yet, a last \r may turn out to begin it.
      const length = bytes[all - 1] === 0x0d ? all - 1 : all;
      this.#check(length);
      if (end >= 0) return decoder.decode(this.#take(length, end + 1));
      if (await this.#fill()) continue;
      this.#check(all);
      return all === 0 ? null : decoder.decode(this.#take(all));
    }
  }

  /** The lines, as `readLine` gives them. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    for (let line; (line = await this.readLine()) !== null;) yield line;
  }

  /** So many bytes, as a copy. `null` at the end, within them `UnexpectedEof`. */
  async readExactly(count: number): Promise<Uint8Array<ArrayBuffer> | null> {
    this.#check(count);
    while (this.buffered.length < count) {
      if (await this.#fill()) continue;
      if (this.buffered.length === 0) return null;
      throw new Deno.errors.UnexpectedEof("the peer ended within a message");
    }
    return this.#take(count).slice();
  }

  /** The rest, as a text. */
  async readAll(): Promise<string> {
    do this.#check(this.#end - this.#start); while (await this.#fill());
    return decoder.decode(this.#take(this.#end - this.#start));
  }

  #check(length: number): void {
    if (length >= 0 && length <= this.limit && length % 1 === 0) return;
    throw new Deno.errors.InvalidData(`${length} bytes, at most ${this.limit}`);
  }

  #take(length: number, withItsEnd = length): Uint8Array<ArrayBuffer> {
    const bytes = this.#buffer.subarray(this.#start, this.#start + length);
    this.#start += withItsEnd;
    return bytes;
  }

  /** Reads on. Gives whether more has come, which it has not at the end. */
  async #fill(): Promise<boolean> {
    // No room is left, or much of it holds what was taken: on in a new buffer.
    if (this.#end === this.#buffer.length || this.#start > 4096) {
      const kept = this.buffered;
      this.#buffer = new Uint8Array(Math.max(4096, 2 * kept.length));
      this.#buffer.set(kept);
      [this.#start, this.#end] = [0, kept.length];
    }
    const room = this.#end ? this.#buffer.subarray(this.#end) : this.#buffer;
    const count = this.#isEnded ? null : await this.source.read(room);
    this.#isEnded = count === null;
    this.#end += count ?? 0;
    return !this.#isEnded;
  }
}

/** A peer's text on one line, with `\u001b` and such for what terminals obey. */
export function printable(text: string): string {
  const controls = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu;
  const names = new Map([["\n", "\\n"], ["\r", "\\r"], ["\t", "\\t"]]);
  const code = (one: string) => one.charCodeAt(0).toString(16).padStart(4, "0");
  return text.replace(controls, (one) => names.get(one) ?? `\\u${code(one)}`);
}

/** The same, without the line end that nc and telnet add. */
const shown = (text: string) => printable(text.replace(/\r?\n$/, ""));
const format = ({ hostname: name, port }: { hostname: string; port: number }) =>
  `${name.includes(":") ? `[${name}]` : name}:${port}`;

/** Shows an error on stderr. It may quote a peer. */
function report(error: unknown, prefix = ""): void {
  try {
    const text = typeof error === "string" ? error : Deno.inspect(error);
    console.error((prefix + text).split("\n").map(printable).join("\n"));
  } catch { // There is no other place to say it.
  }
}

/** Reads the command line. Throws an error that says what is wrong with it. */
function parseFlags<Valued extends string, Switch extends string>(
  args: string[],
  defaults: Record<Valued, string>,
  switches: Switch[],
): Record<Valued, string> & Record<Switch, boolean> {
  // It would be on, whatever the value.
  const valued = args.find((arg) => /^-(-(once|quiet|help)|[qh]+)=/.test(arg));
  if (valued) throw new TypeError(`${valued.split("=")[0]} takes no value`);
  const refuse = (arg: unknown) => {
    throw new TypeError(`unexpected "${arg}"`);
  };
  const flags: Record<string, unknown> & { _: unknown[] } = parseArgs(args, {
    string: Object.keys(defaults),
    boolean: switches as string[],
    alias: { port: "p", quiet: "q", help: "h" },
    default: defaults as Record<string, string>,
    unknown: refuse,
  });
  flags._.forEach(refuse); // what stands behind `--`
  const empty = Object.keys(defaults).find((name) => flags[name] === "");
  if (empty) throw new TypeError(`--${empty} needs a value: --${empty}=VALUE`);
  return flags as ReturnType<typeof parseFlags<Valued, Switch>>;
}

/** A flag's number, in plain decimals: without a `most`, of seconds for a timer. */
function numberOf(name: string, text: string, least: number, most?: number) {
  const pattern = most ? /^\d+$/ : /^\d+(\.\d+)?$/;
  const value = pattern.test(text) ? Number(text) : NaN;
  const limit = most ?? 2_147_483;
  if (value >= least && value <= limit) return value;
  const range = `a ${most ? "whole " : ""}number from ${least} to ${limit}`;
  throw new RangeError(`--${name} must be ${range}, not "${text}"`);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
