#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP client: it connects to a server, reads the server's greeting to its
 * end, sends a reply, and closes. Where its steps stand:
 *
 * - 1 listen: that is the server's
 * - 2 connect, and 6 close: {@linkcode connect}
 * - 3 read the greeting, 4 to its end, 5 reply: {@linkcode reply}
 *
 * As a command: `deno run --allow-net client.ts`.
 *
 * As a library, with a protocol of your own in place of steps 3 to 5. This client
 * sends a line and prints the one that comes back:
 *
 * ```ts
 * import { connect, readLines, sendAll } from "./client.ts";
 *
 * const answer = await connect({
 *   port: 9000,
 *   handler: async (connection) => {
 *     await sendAll(connection, "hello\n");
 *     return await readLines(connection).next();
 *   },
 * });
 * console.log(answer.value);
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
 * @returns The greeting.
 * @throws {Deno.errors.UnexpectedEof} If the server ended without a greeting.
 * @throws {Deno.errors.InvalidData} If the greeting is longer than 65,536 bytes.
 * @throws {Error} What `answer` throws, and what else ended the connection.
 */
export async function reply(
  connection: Deno.TcpConn,
  answer: (greeting: string) => string,
): Promise<string> {
  // 3. Read the greeting, 4. to its end: there the server has half-closed.
  const greeting = await receiveAll(connection);
  if (greeting === "") throw new Deno.errors.UnexpectedEof("no greeting");
  await sendAll(connection, answer(greeting)); // 5. Reply.
  return greeting;
}

/** Options of {@linkcode connect}. */
export interface ConnectOptions<T> {
  /**
   * All that is done on the connection. It is closed when the handler has
   * settled, and earlier when the time is up or `signal` is aborted: reads and
   * writes then reject. A handler that awaits something else goes on until that
   * settles. `renew()` starts the time anew, after each message for instance.
   *
   * Read to the end, or half-close and read on, before you return: a close with
   * unread input resets the connection, which can lose what was sent last.
   */
  handler: (connection: Deno.TcpConn, renew: () => void) => T | Promise<T>;
  /** The server's address, or a name of it: 127.0.0.1 by default. */
  hostname?: string;
  /** The server's port, 8888 by default. */
  port?: number;
  /**
   * Milliseconds for connecting and the handler together, or from the last
   * `renew()`: 10,000 by default, above 0 and below 2 ** 31, or `Infinity`.
   */
  timeout?: number;
  /**
   * Milliseconds to keep trying while the connection is refused, 0 by default.
   * Each try has its own `timeout`.
   */
  wait?: number;
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
  const { timeout = DEFAULTS.timeout, handler, signal } = options;
  checkTimeout(timeout);
  signal?.throwIfAborted();
  using deadline = deadlineOf(timeout, signal);
  try {
    using connection = await dial(options, deadline); // 2. Connect. 6. Close.
    // Makes a pending read or write reject, however silent the server is.
    deadline.signal.onabort = () => connection[Symbol.dispose]();
    deadline.signal.throwIfAborted();
    return await handler(connection, deadline.renew); // 3 to 5.
  } catch (error) {
    // If the deadline or the caller ended it, that is the error.
    deadline.signal.throwIfAborted();
    throw error;
  }
}

/** Connects, and tries again while nothing listens there and time is left. */
async function dial(
  options: Omit<ConnectOptions<unknown>, "handler">,
  { signal, renew, pause }: ReturnType<typeof deadlineOf>,
): Promise<Deno.TcpConn> {
  const { hostname = DEFAULTS.hostname, port = DEFAULTS.port } = options;
  const { wait = DEFAULTS.wait } = options;
  if (!(wait >= 0)) throw new RangeError(`wait must be from 0, not ${wait}`);
  const waitEnds = performance.now() + wait;
  for (;; await pause(50)) {
    renew();
    try {
      const connection = await Deno.connect({ hostname, port, signal });
      // Where nothing listens on a port that Linux gives to clients, it may give
      // a client that very port, and so connect it to itself.
      const { localAddr, remoteAddr } = connection;
      if (format(localAddr) !== format(remoteAddr)) return connection;
      connection.close();
      throw new Deno.errors.ConnectionRefused("connected to itself");
    } catch (error) {
      signal.throwIfAborted();
      // Nothing listens there, or not yet. Only another try can tell.
      const isRefused = error instanceof Deno.errors.ConnectionRefused;
      if (!isRefused || performance.now() >= waitEnds) throw error;
    }
  }
}

/** A signal that is aborted when the time is up, and when the caller aborts. */
function deadlineOf(timeout: number, caller?: AbortSignal) {
  const controller = new AbortController();
  const { signal } = controller;
  const abort = () => controller.abort(caller?.reason);
  caller?.addEventListener("abort", abort);
  let timer: ReturnType<typeof setTimeout> | undefined;
  return {
    signal,
    /** Starts the time anew. Does nothing after the end. */
    renew() {
      clearTimeout(timer);
      if (timeout === Infinity || signal.aborted) return;
      const reason = new DOMException("time is up", "TimeoutError");
      timer = setTimeout(() => {
        // A little later: after a standstill (Ctrl-Z, a paused container), timers
        // run before the reads of what has long arrived.
        timer = setTimeout(() => controller.abort(reason), 50);
      }, timeout);
    },
    /** Pauses, while no time runs. An abort ends it. */
    async pause(milliseconds: number) {
      clearTimeout(timer);
      await new Promise((resolve) => {
        timer = setTimeout(resolve, milliseconds);
        signal.onabort = resolve;
      });
    },
    [Symbol.dispose]() {
      clearTimeout(timer);
      caller?.removeEventListener("abort", abort);
      controller.abort();
    },
  };
}

// The command

const HELP = `Connects to a TCP server, reads its greeting and sends a reply.

usage: deno run --allow-net client.ts [flags]

  --host HOST        the server's address (${DEFAULTS.hostname})
  --port, -p PORT    the server's port (${DEFAULTS.port})
  --reply TEXT       what the server is sent (${DEFAULTS.reply})
  --timeout SECONDS  for the whole exchange (${DEFAULTS.timeout / 1000})
  --wait SECONDS     to keep trying while refused (${DEFAULTS.wait / 1000})
  --quiet, -q        print only what comes from the server (off)
  --help, -h         show this help (off)

example: deno run --allow-net client.ts --port 9000 --reply "Hello, server"`;

/**
 * Runs the command: does one exchange and prints it.
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 success, 1 failure, 2 wrong command line.
 */
export async function main(args: string[]): Promise<number> {
  let flags;
  try {
    flags = parse(args);
  } catch (error) {
    report(`error: ${(error as Error).message}; see --help`);
    return 2;
  }
  if (flags.help) return print(HELP) ? 0 : 1;
  return await run(flags);
}

function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    reply: DEFAULTS.reply,
    timeout: `${DEFAULTS.timeout / 1000}`,
    wait: `${DEFAULTS.wait / 1000}`,
  }, ["quiet", "help"]);
  const port = numberOf("port", flags.port, 1, 65_535);
  const timeout = 1000 *
    numberOf("timeout", flags.timeout, 0.001, MAX_SECONDS, "number");
  const wait = 1000 * numberOf("wait", flags.wait, 0, MAX_SECONDS, "number");
  return { ...flags, hostname: flags.host, port, timeout, wait };
}

async function run(flags: ReturnType<typeof parse>): Promise<number> {
  let isConnected = false;
  let isPrinted = true; // After a line that could not be printed, no more.
  const show = (line: string) => isPrinted &&= print(line);
  const handler = async (connection: Deno.TcpConn) => {
    isConnected = true;
    if (!flags.quiet) show(`Connected to ${format(connection.remoteAddr)}`);
    await reply(connection, (greeting) => {
      show(`${flags.quiet ? "" : "Greeting: "}${shown(greeting)}`);
      return flags.reply;
    });
    if (!flags.quiet) show(`Replied: ${shown(flags.reply)}`);
  };
  try {
    await connect({ ...flags, handler });
    return isPrinted ? 0 : 1;
  } catch (error) {
    report(`error: ${explain(error as Error, format(flags), isConnected)}`);
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

function explain(error: Error, server: string, isConnected: boolean): string {
  if (error instanceof DOMException) {
    return `${server} took too long; give it more time with --timeout SECONDS`;
  }
  if (error instanceof Deno.errors.UnexpectedEof) {
    return `${server} closed without a greeting`;
  }
  if (error instanceof Deno.errors.InvalidData) {
    return `${server} sent a greeting longer than ${MAX_LENGTH} bytes`;
  }
  if (isConnected) return `${server} reset the connection`;
  if (error instanceof Deno.errors.ConnectionRefused) {
    return `nothing listens on ${server}; start the server, or use --wait SECONDS`;
  }
  if (error instanceof Deno.errors.NotCapable) {
    return `no permission to connect to ${server}; run with --allow-net=${server}`;
  }
  return `cannot reach ${server}: ${error.message}`;
}

// From here to the last line, server.ts and client.ts are the same to the
// letter: each runs alone, so neither can import what both need.

/** The most that is read of a text, in bytes, and of a line, in characters. */
const MAX_LENGTH = 65_536;
const encoder = new TextEncoder();
// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const utf8 = () => new TextDecoder("utf-8", { ignoreBOM: true });
const decoder = utf8();

/**
 * Sends all of the data, a text in UTF-8: one write may take only a part. Of two
 * at once on one connection the parts can mix, so await the first.
 */
export async function sendAll(
  writer: { write(data: Uint8Array): Promise<number> },
  data: string | Uint8Array,
): Promise<void> {
  let rest = typeof data === "string" ? encoder.encode(data) : data;
  while (rest.length > 0) rest = rest.subarray(await writer.write(rest));
}

/**
 * Reads to the end of what the peer sends: one read is not one message.
 *
 * @param maxBytes The most to take, by default 65,536: a peer may send any.
 * @returns The text, with U+FFFD for bytes that are not UTF-8.
 * @throws {Deno.errors.InvalidData} If more than `maxBytes` came.
 */
export async function receiveAll(
  reader: { read(buffer: Uint8Array): Promise<number | null> },
  maxBytes = MAX_LENGTH,
): Promise<string> {
  let buffer = new Uint8Array(128); // small at first: a silent peer holds it
  for (let length = 0;;) {
    const count = await reader.read(buffer.subarray(length));
    // Decoded as a whole: a character may be split over two reads.
    if (count === null) return decoder.decode(buffer.subarray(0, length));
    length += count;
    if (length > maxBytes) throw new Deno.errors.InvalidData("too long a text");
    if (length === buffer.length) {
      buffer = new Uint8Array(buffer.buffer.transfer(2 * length));
    }
  }
}

/**
 * Reads lines as they come, without the `\n` or `\r\n` at their ends. What
 * follows the last line end is a line, too. Leaving a `for await` ends it, with
 * what was read ahead; `next()` takes single lines.
 *
 * @param maxLength The longest line to take, by default 65,536 characters, as
 * the `length` of a string counts them.
 * @throws {Deno.errors.InvalidData} At a longer line, after those before it.
 */
export async function* readLines(
  reader: { read(buffer: Uint8Array): Promise<number | null> },
  maxLength = MAX_LENGTH,
): AsyncGenerator<string, void, void> {
  const checked = (line: string) => {
    if (line.length <= maxLength) return line;
    throw new Deno.errors.InvalidData("too long a line");
  };
  const decoder = utf8(); // keeps the part of a character that a read ends with
  const buffer = new Uint8Array(4096);
  let line = ""; // as far as it has come
  for (;;) {
    const count = await reader.read(buffer);
    const bytes = buffer.subarray(0, count ?? 0);
    const text = decoder.decode(bytes, { stream: count !== null });
    const [first = "", ...others] = text.split("\n");
    line += first;
    for (const next of others) {
      yield checked(line.replace(/\r$/, ""));
      line = next;
    }
    if (count === null) break;
    // Its last character may yet turn out to begin its end.
    if (line.length > maxLength) checked(line.replace(/\r$/, ""));
  }
  if (line !== "") yield checked(line);
}

/**
 * A peer's text made harmless to show, on one line: control characters, line
 * separators and bidirectional controls, which a terminal obeys, become escapes
 * such as `\u001b`.
 */
export function printable(text: string): string {
  return text.replace(
    /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu,
    (control) =>
      ({ "\n": "\\n", "\r": "\\r", "\t": "\\t" })[control] ??
        `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** The same, without the line end that nc and telnet add. */
function shown(text: string): string {
  return printable(text.replace(/\r?\n$/, ""));
}

function format({ hostname, port }: Omit<Deno.NetAddr, "transport">): string {
  return `${hostname.includes(":") ? `[${hostname}]` : hostname}:${port}`;
}

function checkTimeout(timeout: number): void {
  if (timeout > 0 && timeout <= 2 ** 31 - 1 || timeout === Infinity) return;
  throw new RangeError(`timeout must be above 0 and below 2 ** 31: ${timeout}`);
}

/** Shows an error on stderr. It may quote a peer. */
function report(error: unknown, prefix = ""): void {
  try {
    const text = typeof error === "string" ? error : Deno.inspect(error);
    console.error((prefix + text).split("\n").map(printable).join("\n"));
  } catch {
    // There is no other place to say it.
  }
}

/** Reads the command line. Throws an error that says what is wrong with it. */
function parseFlags<Valued extends string, Switch extends string>(
  args: string[],
  defaults: Record<Valued, string>,
  switches: Switch[],
): Record<Valued, string> & Record<Switch, boolean> {
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
  // A switch with a value would be on, whatever the value.
  const valued = switches.find((name) =>
    args.some((arg) => arg.startsWith(`--${name}=`))
  );
  if (valued) throw new TypeError(`--${valued} takes no value`);
  const empty = Object.keys(defaults).find((name) => flags[name] === "");
  if (empty) throw new TypeError(`--${empty} needs a value: --${empty}=VALUE`);
  return flags as ReturnType<typeof parseFlags<Valued, Switch>>;
}

const MAX_SECONDS = 2_147_483; // A longer timer would fire at once.

/** The value of a flag as a number, written in plain decimals. */
function numberOf(
  flag: string,
  text: string,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
  kind: "number" | "whole number" = "whole number",
): number {
  const pattern = kind === "number" ? /^\d+(\.\d+)?$/ : /^\d+$/;
  const value = pattern.test(text) ? Number(text) : NaN;
  if (value >= least && value <= most) return value;
  const range = `a ${kind} from ${least} to ${most}`;
  throw new RangeError(`--${flag} must be ${range}, not "${text}"`);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
