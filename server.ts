#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP server: it sends each client a greeting, reads the client's reply, and
 * closes. Where its steps stand:
 *
 * - 1 listen, 2 accept: {@linkcode serve}, in the class `TcpServer`
 * - 3 greet, 4 half-close, 5 read the reply: {@linkcode greet}
 * - 6 close: `run` of the class `TimedSession`, around any handler
 *
 * As a command: `deno run --allow-net server.ts`.
 *
 * As a library, with a protocol of your own in place of steps 3 to 5. This server
 * sends each line back:
 *
 * ```ts
 * import { Reader, sendAll, serve } from "./server.ts";
 *
 * const server = serve({
 *   port: 9000,
 *   handler: async (connection, session) => {
 *     for await (const line of new Reader(connection)) {
 *       await sendAll(connection, `${line}\n`);
 *       session.renew(); // The next line has its own ten seconds.
 *     }
 *   },
 * });
 * console.log(`Listening on port ${server.addr.port}`);
 * ```
 *
 * @module
 */

// In full: a script that runs alone has no deno.json to look a name up in.
// deno-lint-ignore no-import-prefix
import { parseArgs } from "jsr:@std/cli@^1.0.32/parse-args";

/**
 * The exchange with one client, steps 3 to 5, on any connection.
 *
 * @returns The reply, `""` if the client left without one.
 * @throws {Deno.errors.InvalidData} If the reply is longer than 65,536 bytes.
 * @throws {Error} What else ended the connection before the reply had ended,
 * such as `Deno.errors.ConnectionReset`.
 */
export async function greet(
  connection: Deno.TcpConn,
  greeting: string | Uint8Array,
): Promise<string> {
  try {
    await sendAll(connection, greeting); // 3. Greet.
    // 4. Half-close. A close would shut the reply out, and without either the
    // client could not tell where the greeting ends.
    await connection.closeWrite();
  } catch (error) {
    // A client may have replied and gone before it was greeted. Its reply is
    // whole, and still there to be read. Any other error breaks the reply off.
    const { BrokenPipe, NotConnected } = Deno.errors;
    const isGone = error instanceof BrokenPipe || error instanceof NotConnected;
    if (!isGone) throw error;
  }
  return await new Reader(connection).readAll(); // 5. Read the reply to its end.
}

/** Options of {@linkcode serve}. */
export interface ServeOptions {
  /**
   * All that is done on a connection. It is closed when the handler has settled,
   * and earlier by the time, `signal` or `session.end`: reads and writes then
   * reject. A handler that awaits something else goes on, and counts: give it
   * `session.signal`. It must await neither `finished` nor `shutdown()`.
   *
   * Await, or stop, all that it starts. What is left running meets a closed
   * connection, and an error that nobody awaits ends the program. Read to the
   * end, or half-close and read on, before you return: a close with unread input
   * resets the connection, and can cost the client what was sent last. Read with
   * {@linkcode Reader}: `connection.readable` closes all at its end.
   */
  handler: (connection: Deno.TcpConn, session: Session) => unknown;
  /**
   * Called, after the close, with what a handler throws, as it is, or the reason
   * of an early end: a `DOMException` named `TimeoutError`, that of `signal`, or
   * that of `session.end`. What it throws itself is shown on stderr; it is not
   * waited for. The default shows the error on stderr, in one line what can happen
   * on any connection, with its stack any other.
   */
  onError?: (error: unknown, client: Deno.NetAddr) => unknown;
  /** Where to listen: 127.0.0.1 by default, which only this machine reaches. */
  hostname?: string;
  /** The port to listen on, 8888 by default; 0 picks a free one. */
  port?: number;
  /**
   * Milliseconds that a handler has, from the client's being accepted or the last
   * `session.renew()`: 10,000 by default, above 0 and below 2 ** 31, or `Infinity`.
   * Then a client whose machine vanished stays, and counts: better a long time,
   * and `renew`. The close comes 50 to 100 ms after the time.
   */
  timeout?: number;
  /** Clients served at once, 1024 by default. Others wait in the kernel's queue. */
  maxClients?: number;
  /** Turns off Nagle's algorithm, which holds small writes back: true by default. */
  noDelay?: boolean;
  /** Aborting it closes the listener and all connections at once. */
  signal?: AbortSignal;
}

/** A running server. `await using` shuts it down at the end of the block. */
export interface Server extends AsyncDisposable {
  /** The address that the server listens on. */
  readonly addr: Deno.NetAddr;
  /** Resolves after a shutdown or abort, when all handlers have settled. */
  readonly finished: Promise<void>;
  /**
   * Accepts no more, lets the handlers finish, and resolves with `finished`.
   * Clients that still wait in the kernel's queue are reset.
   */
  shutdown(): Promise<void>;
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  greeting: "你好,客戶端,我是服務器",
  timeout: 10_000, // milliseconds
  maxClients: 1024,
};

/**
 * Starts a server, and returns at once.
 *
 * @throws {RangeError} If `timeout` or `maxClients` is out of its range.
 * @throws {Error} What `Deno.listen` throws, such as `Deno.errors.AddrInUse`,
 * and the reason of a `signal` that is aborted already.
 */
export function serve(options: ServeOptions): Server {
  return new TcpServer(options);
}

/** What the system reports where it has nothing left to accept a client with. */
const SHORTAGES = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"];

class TcpServer implements Server {
  readonly addr: Deno.NetAddr;
  readonly finished: Promise<void>;
  readonly #options: ServeOptions;
  readonly #timeout: number;
  readonly #maxClients: number;
  readonly #listener: Deno.TcpListener;
  readonly #sessions: TimedSession[] = []; // of handlers that have not settled
  #isStopping = false; // set by `shutdown`, for good
  #looks?: ReturnType<typeof setInterval>; // set while there are any
  #wake = () => {}; // ends the wait of `#untilFewer`
  #lastReport = -Infinity; // of a shortage

  constructor(options: ServeOptions) {
    const { hostname = DEFAULTS.hostname, port = DEFAULTS.port } = options;
    this.#options = options;
    this.#timeout = options.timeout ?? DEFAULTS.timeout;
    this.#maxClients = options.maxClients ?? DEFAULTS.maxClients;
    new TimedSession(this.#timeout); // throws where that is out of its range
    if (!(this.#maxClients >= 1)) {
      throw new RangeError(`maxClients is below 1: ${this.#maxClients}`);
    }
    options.signal?.throwIfAborted();
    // 1. Listen. The kernel keeps clients in the backlog until they are accepted.
    // Deno's default of 511 overflows in a burst, which costs each client that
    // did not fit a second.
    this.#listener = Deno.listen({ hostname, port, tcpBacklog: 4096 });
    this.addr = this.#listener.addr;
    options.signal?.addEventListener("abort", this.#abort);
    this.finished = this.#acceptAll();
  }

  async #acceptAll(): Promise<void> {
    for (let accepted = 1; !this.#isStopping;) {
      // No room: further clients wait in the kernel's queue. None is refused.
      if (this.#sessions.length >= this.#maxClients) {
        await this.#untilFewer();
        continue;
      }
      try {
        const connection = await this.#listener.accept(); // 2. Accept.
        // Deno learns only in a turn of its event loop that a fresh connection can
        // be written to, and while it accepts others such turns are rare: of
        // thousands of clients, some would wait for a second. A write of nothing
        // ends with that turn. If it fails, the handler meets the error, too.
        if (accepted++ % 32 === 0) {
          await connection.write(new Uint8Array(0)).catch(() => {});
        }
        // Not awaited, or one client would hold up the next. Never rejects.
        if (!this.#isStopping) this.#serve(connection);
        else connection.close(); // It came at the last moment.
      } catch (error) {
        await this.#pauseAt(error);
      }
    }
    while (this.#sessions.length > 0) await this.#untilFewer();
    this.#options.signal?.removeEventListener("abort", this.#abort);
  }

  /** Waits until one has settled. Only `#acceptAll` waits, so one is to be woken. */
  #untilFewer(): Promise<void> {
    return new Promise((resolve) => this.#wake = resolve);
  }

  /** Pauses where nothing is left to accept a client with, and says so. */
  async #pauseAt(error: unknown): Promise<void> {
    // Any other error means that one client has reset, or that this is the end.
    if (!isSystemError(error) || !SHORTAGES.includes(error.code)) return;
    const now = performance.now();
    if (now - this.#lastReport >= 60_000) {
      this.#lastReport = now;
      const what = "no client can be accepted for now, still trying";
      report(`error: ${what}: ${error.message}`);
    }
    // At once it would fail again. Room is made as clients leave.
    await new Promise((resolve) => setTimeout(resolve, 100));
  }

  /** Serves one client, from its acceptance to its close. Never rejects. */
  async #serve(connection: Deno.TcpConn): Promise<void> {
    const { handler, noDelay, onError = showError } = this.#options;
    const session = new TimedSession(this.#timeout);
    this.#looks ??= TimedSession.watch(this.#sessions);
    try {
      // 3 to 5. Run the handler. 6. Close.
      await session.run(connection, handler, noDelay, this.#sessions);
    } catch (error) {
      // Not awaited: it may return `finished`, which waits for this client.
      Promise.try(onError, error, connection.remoteAddr).catch(report);
    }
    if (this.#sessions.length === 0) {
      clearInterval(this.#looks);
      this.#looks = undefined;
    }
    this.#wake();
  }

  // A field, so that it can be passed on as it is.
  readonly shutdown = (): Promise<void> => {
    this.#isStopping = true;
    // Makes a pending accept reject. A loop that waits for room is woken by the
    // client that makes it. Not `close()`: a second call must do nothing.
    this.#listener[Symbol.dispose]();
    return this.finished;
  };
  readonly [Symbol.asyncDispose] = this.shutdown;

  readonly #abort = (): void => {
    this.shutdown();
    for (const one of this.#sessions) one.end(this.#options.signal?.reason);
  };
}

/**
 * Calls back at the first stop signal: Ctrl-C, or SIGTERM. A second one ends the
 * program, as if nobody listened. To dispose of it stops the listening.
 */
export function onStopSignal(callback: () => unknown): Disposable {
  const listening = new DisposableStack();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const listener = () => {
    // Under `deno task`, one Ctrl-C comes twice: from the terminal and the task.
    if (timer !== undefined) return;
    timer = setTimeout(() => listening.dispose(), 100);
    callback();
  };
  listening.defer(() => clearTimeout(timer));
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    // Windows has no SIGTERM to listen for.
    if (signal === "SIGTERM" && Deno.build.os === "windows") continue;
    Deno.addSignalListener(signal, listener);
    listening.defer(() => Deno.removeSignalListener(signal, listener));
  }
  return listening;
}

/** The default of `onError`. */
function showError(error: unknown, client: Deno.NetAddr): void {
  const { InvalidData, UnexpectedEof } = Deno.errors;
  const isUsual = isSystemError(error) || error instanceof DOMException ||
    error instanceof InvalidData || error instanceof UnexpectedEof;
  const text = isUsual ? printable(`${error.name}: ${error.message}`) : error;
  report(text, `${format(client)} `);
}

/** Whether the system reported it, by a code such as `ECONNRESET`. */
function isSystemError(error: unknown): error is Error & { code: string } {
  return error instanceof Error && "code" in error &&
    typeof error.code === "string";
}

// The command

const HELP = `Sends each TCP client a greeting and reads its reply.

usage: deno run --allow-net server.ts [flags]

  --host HOST        the address to listen on (${DEFAULTS.hostname})
  --port, -p PORT    the port to listen on; 0 picks a free one (${DEFAULTS.port})
  --greeting TEXT    what each client is sent (${DEFAULTS.greeting})
  --timeout SECONDS  to the end of a client's reply (${DEFAULTS.timeout / 1000})
  --max-clients N    clients served at once; further ones wait (${DEFAULTS.maxClients})
  --once             serve one client, then end (off)
  --quiet, -q        no line per client (off)
  --help, -h         show this help (off)

example: deno run --allow-net server.ts --port 9000 --greeting "Hello, client"`;

/** Runs the command. Gives 0 for success, 1 for failure, 2 for wrong flags. */
export async function main(args: string[]): Promise<number> {
  const out = new LineWriter();
  let flags;
  try {
    flags = parse(args);
  } catch (error) {
    report(`error: ${(error as Error).message}; see --help`);
    return 2;
  }
  if (!flags.help) return await run(flags, out);
  out.print(HELP);
  if (await out.flush()) return 0;
  out.fail("nobody reads the lines");
  return 1;
}

function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    greeting: DEFAULTS.greeting,
    timeout: `${DEFAULTS.timeout / 1000}`,
    "max-clients": `${DEFAULTS.maxClients}`,
  }, ["once", "quiet", "help"]);
  return {
    ...flags,
    hostname: flags.host.replace(/^\[(.*)\]$/, "$1"), // as a URL has it
    port: numberOf("port", flags.port, 0, 65_535),
    timeout: 1000 * numberOf("timeout", flags.timeout, 0.001),
    maxClients: numberOf("max-clients", flags["max-clients"], 1, 2 ** 53 - 1),
  };
}

async function run(
  { greeting, once, quiet, ...options }: ReturnType<typeof parse>,
  out: LineWriter,
): Promise<number> {
  let server: Server;
  const bytes = encoder.encode(greeting); // once for all
  let served = 0;
  let active = 0;
  let isOver = false;
  let code = once ? 1 : 0; // with --once, 0 when its client has replied or left
  const show = (client: Deno.NetAddr, outcome: string, reply = "") => {
    if (!quiet) out.print(`${format(client)} ${outcome}${shown(reply)}`);
  };
  async function handler(connection: Deno.TcpConn): Promise<void> {
    const client = connection.remoteAddr;
    served++;
    active++;
    show(client, "connected");
    if (once) server.shutdown(); // `finished` is awaited below
    try {
      const reply = await greet(connection, bytes);
      show(client, reply === "" ? "left without a reply" : "replied: ", reply);
      code = 0;
    } finally {
      active--;
    }
  }
  function onError(error: unknown, client: Deno.NetAddr): void {
    const outcome = outcomeOf(error);
    show(client, outcome);
    if (outcome === "failed") report(error);
  }
  try {
    // One message needs no `noDelay`, which is a system call for each client.
    server = serve({ ...options, handler, onError, noDelay: false });
  } catch (error) {
    report(`error: ${explain(error as Error, format(options))}`);
    return 1;
  }
  // Not earlier: where `Deno.listen` asks for the permission, a signal ends it.
  const listening = onStopSignal(() => {
    if (!isOver) out.print(`Stopping: ${count(active, "client")} to finish`);
    server.shutdown(); // as above
  });
  // A command listens to its very end: a late signal must not cost its exit code.
  using _ = import.meta.main ? null : listening;
  out.print(`Listening on ${format(server.addr)}`);
  await server.finished;
  isOver = true;
  out.print(`Served ${count(served, "client")}`);
  if (await out.flush()) return code;
  out.fail("nobody reads the lines");
  return once ? 1 : code;
}

/** What is printed of a client whose exchange ended with an error. */
function outcomeOf(error: unknown): string {
  if (error instanceof DOMException) return "timed out";
  if (error instanceof Deno.errors.InvalidData) return "sent too long a reply";
  return isSystemError(error) ? "reset the connection" : "failed";
}

function explain(error: Error, address: string): string {
  if (error instanceof Deno.errors.AddrInUse) {
    return `${address} is in use; choose another port with --port`;
  }
  if (error instanceof Deno.errors.AddrNotAvailable) {
    return `${address} is not an address of this machine; choose another with --host`;
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    return `the system does not allow listening on ${address}; choose a port from 1024 with --port`;
  }
  if (error instanceof Deno.errors.NotCapable) {
    return `no permission to listen on ${address}; run with --allow-net=${address}`;
  }
  return `cannot listen on ${address}: ${error.message}`;
}

function count(number: number, noun: "client" | "line"): string {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/**
 * Prints without blocking. While the reader of a pipe does not read, or after
 * Ctrl-S, `console.log` would hold up every connection, and the stop signals.
 */
class LineWriter {
  #waiting = ""; // lines, written together: one by one costs half as much again
  #dropped = 0; // lines for which there was no room among them
  #written?: Promise<void>; // set while `#writeAll` is at work
  #failed = false; // set by `fail`, where lines are lost

  print(line: string): void {
    if (this.#waiting.length + line.length < 2 ** 24) {
      this.#waiting += `${line}\n`;
    } else this.#dropped++;
    this.#written ??= this.#writeAll();
  }

  async #writeAll(): Promise<void> {
    while (this.#waiting !== "") {
      let lines = this.#waiting;
      if (this.#dropped) lines += `${count(this.#dropped, "line")} dropped\n`;
      [this.#waiting, this.#dropped] = ["", 0];
      const { stdout } = Deno;
      await sendAll(stdout, lines).catch(({ message }) => this.fail(message));
    }
    this.#written = undefined;
  }

  /** Says it once. A server that goes on does so with its lines or without. */
  fail(message: string): void {
    if (!this.#failed) report(`error: cannot print: ${message}`);
    this.#failed = true;
  }

  /** Waits until all is written, 5 s at most. Resolves to whether it is. */
  async flush(): Promise<boolean> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, 5_000);
    await Promise.race([this.#written, promise]);
    clearTimeout(timer);
    return this.#written === undefined && !this.#failed;
  }
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
