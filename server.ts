#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP server: it sends each client a greeting, reads the client's reply, and
 * closes. Where its steps stand:
 *
 * - 1 listen, 2 accept, and 6 close: {@linkcode serve}, in the class `TcpServer`
 * - 3 greet, 4 half-close, 5 read the reply: {@linkcode greet}
 *
 * As a command: `deno run --allow-net server.ts`.
 *
 * As a library, with a protocol of your own in place of steps 3 to 5. This server
 * sends each line back:
 *
 * ```ts
 * import { readLines, sendAll, serve } from "./server.ts";
 *
 * const server = serve({
 *   port: 9000,
 *   handler: async (connection, renew) => {
 *     for await (const line of readLines(connection)) {
 *       await sendAll(connection, `${line}\n`);
 *       renew(); // The next line has its own ten seconds.
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
  greeting: string,
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
  return await receiveAll(connection); // 5. Read the reply to its end.
}

/** Options of {@linkcode serve}. */
export interface ServeOptions {
  /**
   * All that is done on a connection. The server closes it when the handler has
   * settled, and earlier when its time is up or the server is aborted: reads and
   * writes then reject. A handler may close it, too, by
   * `connection[Symbol.dispose]()`.
   *
   * Read to the end, or half-close and read on, before you return: a close with
   * unread input resets the connection, and can cost the client what was sent
   * last. `connection.readable` closes the whole connection at its end; use
   * `connection.read()`, {@linkcode receiveAll} or {@linkcode readLines}.
   *
   * `renew()` starts the time anew. So a connection may last, with a deadline
   * for each message, for reads and writes alike.
   *
   * A handler that awaits something else goes on until that settles, and counts
   * for `maxClients` and `finished` until then: it must await neither `finished`
   * nor `shutdown()`.
   */
  handler: (connection: Deno.TcpConn, renew: () => void) => unknown;
  /**
   * Called with what a handler throws or rejects with, as it is, once the
   * connection is closed. Where the server closed it first, a read or a write has
   * rejected, with `Interrupted` for instance; if the handler lets that through,
   * the error is the reason instead: a `DOMException` named `TimeoutError`, or
   * that of `signal`. What `onError` throws or rejects with is shown on stderr. A
   * promise that it returns is not waited for.
   *
   * The default shows the error on stderr: in one line what can happen on any
   * connection, with its stack any other.
   */
  onError?: (error: unknown, client: Deno.NetAddr) => unknown;
  /** Where to listen: 127.0.0.1 by default, which only this machine reaches. */
  hostname?: string;
  /** The port to listen on, 8888 by default; 0 picks a free one. */
  port?: number;
  /**
   * Milliseconds that a handler has, from a client's being accepted or the last
   * `renew()`: 10,000 by default, above 0 and below 2 ** 31, or `Infinity`. The
   * connection is closed 50 to 100 ms later.
   */
  timeout?: number;
  /** Clients served at once, 1024 by default. Others wait in the kernel's queue. */
  maxClients?: number;
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
const NOTHING = new Uint8Array(0);

/** A client whose time runs. */
interface Client {
  readonly connection: Deno.TcpConn;
  /** When its time is up. `#renew` sets it anew. */
  due: number;
  /** Set by `#close`, which closes before the handler has settled. */
  closed?: { reason: unknown };
}

class TcpServer implements Server {
  readonly addr: Deno.NetAddr;
  readonly finished: Promise<void>;
  readonly #options: ServeOptions;
  readonly #timeout: number;
  readonly #maxClients: number;
  readonly #listener: Deno.TcpListener;
  #isStopping = false; // set by `shutdown`, for good
  #active = 0; // clients whose handlers have not settled; `#serve` counts them
  #fresh = 0; // those of them that can't be written to yet; it counts these, too
  #wake = () => {}; // ends the wait of `#untilFewer`; called where a count sinks
  /** Those whose time runs: the first due first, as all have the same time. */
  readonly #clients = new Set<Client>();
  #timer?: ReturnType<typeof setTimeout>; // one for all; `#watch` sets it

  constructor(options: ServeOptions) {
    const { hostname = DEFAULTS.hostname, port = DEFAULTS.port } = options;
    this.#options = options;
    this.#timeout = options.timeout ?? DEFAULTS.timeout;
    this.#maxClients = options.maxClients ?? DEFAULTS.maxClients;
    checkTimeout(this.#timeout);
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
    let lastReport = -Infinity;
    while (!this.#isStopping) {
      // No room: further clients wait in the kernel's queue. None is refused.
      if (this.#active >= this.#maxClients || this.#fresh >= 32) {
        await this.#untilFewer();
        continue;
      }
      try {
        const connection = await this.#listener.accept(); // 2. Accept.
        // Not awaited, or one client would hold up the next. Never rejects.
        if (!this.#isStopping) this.#serve(connection);
        else connection.close(); // It came at the last moment.
      } catch (error) {
        // Any other error means that one client has reset, or that this is the end.
        if (!isSystemError(error) || !SHORTAGES.includes(error.code)) continue;
        const now = performance.now();
        if (now - lastReport >= 60_000) {
          lastReport = now;
          const what = "no client can be accepted for now, still trying";
          report(`error: ${what}: ${error.message}`);
        }
        // At once it would fail again. Room is made as clients leave.
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
    while (this.#active > 0) await this.#untilFewer();
    clearTimeout(this.#timer);
    this.#options.signal?.removeEventListener("abort", this.#abort);
  }

  /** Waits until a count sinks. Only `#acceptAll` waits, so there is one to wake. */
  #untilFewer(): Promise<void> {
    return new Promise((resolve) => this.#wake = resolve);
  }

  /** Serves one client, from its acceptance to its close. Never rejects. */
  async #serve(connection: Deno.TcpConn): Promise<void> {
    const due = performance.now() + this.#timeout;
    const client: Client = { connection, due };
    this.#clients.add(client);
    if (this.#timer === undefined) this.#watch();
    this.#active++;
    this.#fresh++;
    let isFresh = true;
    try {
      using _ = connection; // 6. Close, on every path.
      // Deno learns only in a turn of its event loop that a fresh connection can
      // be written to, and while it accepts others such turns are rare: of
      // thousands of clients, some would wait for a second. This write of nothing
      // ends with that turn.
      await connection.write(NOTHING);
      isFresh = false;
      this.#fresh--;
      this.#wake();
      // 3 to 5, unless an abort in this very turn has closed it.
      const { handler } = this.#options;
      if (!client.closed) await handler(connection, () => this.#renew(client));
    } catch (error) {
      // It can't be written to: it is gone as if it had never been accepted.
      if (isFresh) this.#fresh--;
      else this.#report(client, error);
    }
    this.#clients.delete(client);
    this.#active--;
    this.#wake();
  }

  #report({ connection, closed }: Client, error: unknown): void {
    const { onError = showError } = this.#options;
    const reason = closed ? closed.reason : error;
    // Not awaited: it may return `finished`, which waits for this client.
    Promise.try(onError, reason, connection.remoteAddr).catch(report);
  }

  #renew(client: Client): void {
    // Nothing, if it is closed or its handler has settled.
    if (!this.#clients.delete(client)) return;
    client.due = performance.now() + this.#timeout;
    this.#clients.add(client);
  }

  /** Waits for the first to be due, and closes those that then are. */
  #watch(): void {
    this.#timer = undefined;
    const [first] = this.#clients;
    if (first === undefined || first.due === Infinity) return;
    // Rounded up: a timer takes whole milliseconds, and would come too early.
    const left = Math.max(0, Math.ceil(first.due - performance.now()));
    this.#timer = setTimeout(() => {
      const now = performance.now();
      // A little later: after a standstill (Ctrl-Z, a paused container), timers
      // run before the reads of what has long arrived.
      this.#timer = setTimeout(() => {
        this.#close(now, new DOMException("time is up", "TimeoutError"));
        this.#watch();
      }, 50);
    }, left);
  }

  /** Closes those due by then. Their pending reads and writes reject. */
  #close(until: number, reason: unknown): void {
    for (const client of this.#clients) {
      if (client.due > until) break;
      client.closed = { reason };
      this.#clients.delete(client);
      client.connection[Symbol.dispose](); // not `close()`: it may be closed
    }
  }

  // A field, so that it can be passed on as it is.
  readonly shutdown = (): Promise<void> => {
    this.#isStopping = true;
    // Makes a pending accept reject. A loop that waits for room is woken by the
    // client that makes it. Not `close()`: a second call must do nothing.
    this.#listener[Symbol.dispose]();
    return this.finished;
  };

  readonly #abort = (): void => {
    this.shutdown();
    this.#close(Infinity, this.#options.signal?.reason);
  };

  [Symbol.asyncDispose](): Promise<void> {
    return this.shutdown();
  }
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

/**
 * Runs the command: prints what happens, and ends after one client with
 * `--once`, otherwise on a stop signal.
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 success, 1 failure, 2 wrong command line, 130 ended
 * by a second stop signal.
 */
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
  const { host: hostname, greeting, once, quiet, help } = flags;
  const port = numberOf("port", flags.port, 0, 65_535);
  const timeout = 1000 *
    numberOf("timeout", flags.timeout, 0.001, MAX_SECONDS, "number");
  const most = numberOf("max-clients", flags["max-clients"], 1);
  const maxClients = once ? 1 : most;
  return { hostname, port, greeting, timeout, maxClients, once, quiet, help };
}

async function run(
  { greeting, once, quiet, ...options }: ReturnType<typeof parse>,
  out: LineWriter,
): Promise<number> {
  const stop = new AbortController();
  let server: Server | undefined;
  let isStopping = false;
  let served = 0;
  let active = 0;
  let code = once ? 1 : 0; // with --once, 0 when its client has replied or left
  const show = (client: Deno.NetAddr, outcome: string, reply = "") => {
    if (!quiet) out.print(`${format(client)} ${outcome}${shown(reply)}`);
  };
  async function handler(connection: Deno.TcpConn): Promise<void> {
    const client = connection.remoteAddr;
    served++;
    active++;
    show(client, "connected");
    if (once) server?.shutdown(); // `finished` is awaited below
    try {
      const reply = await greet(connection, greeting);
      show(client, reply === "" ? "left without a reply" : "replied: ", reply);
      code = 0;
    } finally {
      active--;
    }
  }
  function onError(error: unknown, client: Deno.NetAddr): void {
    const outcome = outcomeOf(error, stop.signal);
    show(client, outcome);
    if (outcome === "failed") report(error);
  }
  // From before it listens, as a signal right after the line that says so would
  // end the program, until the lines are out.
  using _ = onStopSignal(() => {
    if (isStopping) return stop.abort();
    isStopping = true;
    out.print(`Stopping: ${count(active, "client")} to finish`);
    server?.shutdown(); // as above
  });
  try {
    server = serve({ ...options, handler, onError, signal: stop.signal });
  } catch (error) {
    report(`error: ${explain(error as Error, format(options))}`);
    return 1;
  }
  out.print(`Listening on ${format(server.addr)}`);
  await server.finished;
  isStopping = true; // From now on, a signal ends the wait for the lines.
  out.print(`Served ${count(served, "client")}`);
  const isPrinted = await out.flush(stop.signal);
  if (stop.signal.aborted) return 130;
  if (isPrinted || !once) return code;
  out.fail("nobody reads the lines");
  return 1;
}

/** What is printed of a client whose exchange ended with an error. */
function outcomeOf(error: unknown, stop: AbortSignal): string {
  if (stop.aborted && error === stop.reason) return "cut off";
  if (error instanceof DOMException) return "timed out";
  if (error instanceof Deno.errors.InvalidData) return "sent too long a reply";
  return isSystemError(error) ? "reset the connection" : "failed";
}

/** Calls back at each stop signal, until it is disposed of. */
function onStopSignal(callback: () => void): Disposable {
  let last = -Infinity;
  const listener = () => {
    // Under `deno task`, one Ctrl-C comes twice: from the terminal and the task.
    const now = performance.now();
    if (now - last < 100) return;
    last = now;
    callback();
  };
  const stack = new DisposableStack();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    // Windows has no SIGTERM to listen for.
    if (signal === "SIGTERM" && Deno.build.os === "windows") continue;
    Deno.addSignalListener(signal, listener);
    stack.defer(() => Deno.removeSignalListener(signal, listener));
  }
  return stack;
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
 * Prints lines, in order, without blocking: while the reader of a pipe does not
 * read, or after Ctrl-S, `console.log` would hold up every connection, and the
 * stop signals, too.
 */
class LineWriter {
  #failed = false; // set by `fail`, where lines are lost
  #waiting = ""; // the lines to be written next
  #dropped = 0; // those left out behind them, where they are too many
  #written?: Promise<void>; // set while `#writeAll` is at work

  print(line: string): void {
    // Where one was left out, so are the next, until the gap is written.
    const hasRoom = this.#waiting.length + line.length < 2 ** 24;
    if (hasRoom && this.#dropped === 0) this.#waiting += `${line}\n`;
    else this.#dropped++;
    this.#written ??= this.#writeAll();
  }

  async #writeAll(): Promise<void> {
    while (this.#waiting !== "") {
      let lines = this.#waiting;
      if (this.#dropped > 0) {
        lines += `${count(this.#dropped, "line")} dropped\n`;
      }
      this.#waiting = "";
      this.#dropped = 0;
      try {
        await sendAll(Deno.stdout, lines);
      } catch (error) {
        this.fail((error as Error).message);
      }
    }
    this.#written = undefined;
  }

  /** Says it once. A server that goes on does so with its lines or without. */
  fail(message: string): void {
    if (!this.#failed) report(`error: cannot print: ${message}`);
    this.#failed = true;
  }

  /**
   * Waits until all is written, 5 s at most, and not after a further signal.
   * Resolves to whether it is.
   */
  async flush(stop?: AbortSignal): Promise<boolean> {
    const { promise: givenUp, resolve: giveUp } = Promise.withResolvers<void>();
    stop?.addEventListener("abort", () => giveUp());
    // After a second signal, what is taken at once still comes.
    const timer = setTimeout(giveUp, stop?.aborted ? 100 : 5_000);
    await Promise.race([this.#written, givenUp]);
    clearTimeout(timer);
    return this.#written === undefined && !this.#failed;
  }
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
