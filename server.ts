#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP server: it sends each client a greeting, reads the client's reply, and
 * closes. As a command: `deno run --allow-net server.ts`. Where its steps stand:
 *
 * - 1 listen, 2 accept: {@linkcode serve}, in the class `TcpServer`
 * - 3 greet, 4 half-close, 5 read the reply: {@linkcode greet}
 * - 6 close: the method `run` of the class `TimedSession`, around any handler
 *
 * As a library, for both sides of a protocol of your own in place of steps 3 to 5:
 *
 * ```ts
 * import { Reader, sendAll, serve, withSession } from "./server.ts";
 *
 * serve({ // a server that sends each line back
 *   port: 9000,
 *   handler: async (connection, session) => {
 *     for await (const line of new Reader(connection)) {
 *       await sendAll(connection, `${line}\n`);
 *       session.renew(); // The next line has its own ten seconds.
 *     }
 *   },
 * });
 * const connection = await Deno.connect({ port: 9000 });
 * await withSession(connection, async () => { // a client of it
 *   await sendAll(connection, "hello\n");
 *   console.log(await new Reader(connection).readLine());
 * });
 * ```
 *
 * @module
 */

/**
 * The exchange with one client, steps 3 to 5, on any connection. Resolves to the
 * reply, `""` if the client left without one.
 *
 * @throws {Deno.errors.InvalidData} If the reply is longer than 65,536 bytes.
 * @throws {Error} What else ended the connection before the reply had ended.
 */
export async function greet(
  connection: Deno.Conn,
  greeting: string | Uint8Array,
): Promise<string> {
  try {
    await sendAll(connection, greeting); // 3. Greet.
    // 4. Half-close, Python's `shutdown(SHUT_WR)`. A close would shut the reply out,
    // and without either the client could not tell where the greeting ends.
    await connection.closeWrite();
  } catch (error) {
    // A client may have replied and gone before it was greeted. Its reply is
    // whole, and still there to be read. Any other error breaks the reply off.
    if (!isOneOf(["BrokenPipe", "NotConnected"], error)) throw error;
  }
  return await new Reader(connection).readAll(); // 5. Read the reply to its end.
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  greeting: "你好,客戶端,我是服務器",
  timeout: 10_000, // milliseconds
  maxClients: 1024,
};

/** Options of {@linkcode withSession}, and of {@linkcode serve} for each client. */
export interface SessionOptions {
  /**
   * Milliseconds for the handler, also while it works: 10,000 by default. The close
   * comes 50 to 100 ms later. `session.renew()` starts them anew. With `Infinity`, a
   * peer whose machine vanished stays, and counts.
   */
  timeout?: number;
  /** Aborting it ends the session early; in `serve` all, and the listener. */
  signal?: AbortSignal;
  /**
   * Turns off Nagle's algorithm, which holds small writes back: true by default. Over
   * TLS it stays on: send a message in one write, as two took 88 ms there and back.
   */
  noDelay?: boolean;
}

/** Options of {@linkcode serve}. */
export interface ServeOptions<C extends Deno.Conn<Deno.NetAddr> = Deno.TcpConn>
  extends SessionOptions {
  /**
   * All that is done on a connection, which is closed when it has settled.
   *
   * - Await, or stop, all that it starts: what is left meets a closed connection,
   *   and an error that nobody awaits ends the program.
   * - Before you return, read to the end, or half-close and read on: a close with
   *   unread input resets the connection, and can cost what was sent last. Read with
   *   {@linkcode Reader}: `connection.readable` closes all at its end.
   * - An early end makes pending reads and writes reject. For what else is awaited
   *   there is `session.signal`. A handler that goes on all the same counts.
   * - It must await neither `finished` nor `shutdown()`.
   */
  handler: (connection: NoInfer<C>, session: Session) => unknown;
  /**
   * Called, after the close, with what a handler throws, as it is, or the reason of
   * an early end: {@linkcode showError} by default. It is not waited for, and what
   * it throws is shown on stderr.
   */
  onError?: (error: unknown, client: Deno.NetAddr) => unknown;
  /** Where to listen: 127.0.0.1 by default, which only this machine reaches. */
  hostname?: string;
  /** The port to listen on, 8888 by default; 0 picks a free one. */
  port?: number;
  /**
   * Where to accept instead, such as what `Deno.listenTls` gives. The server closes
   * it, also where `serve` throws. If you close it, that is a shutdown.
   */
  listener?: Deno.Listener<C, Deno.NetAddr>;
  /** Clients served at once, 1024 by default, or `Infinity`. Others wait. */
  maxClients?: number;
}

/** A running server. `await using` shuts it down at the end of the block. */
export interface Server extends AsyncDisposable {
  /** The address that the server listens on. */
  readonly addr: Deno.NetAddr;
  /** How many clients are being served. */
  readonly clients: number;
  /** Resolves after a shutdown or abort, when all handlers have settled. */
  readonly finished: Promise<void>;
  /**
   * Accepts no more, resets who waits in the kernel's queue, and resolves with
   * `finished`. It tells no handler (an `AbortController` of your own does), and
   * waits for the whole time of each. Who is left after `grace` milliseconds is
   * ended, with a `DOMException` named `AbortError`. A later call can still say so.
   */
  shutdown(grace?: number): Promise<void>;
}

/**
 * Starts a server, and returns at once.
 *
 * ```ts
 * import { sendAll, serve } from "./server.ts";
 *
 * const server = serve({ handler: (client) => sendAll(client, `${Date()}\n`) });
 * console.log(`Listening on port ${server.addr.port}`);
 * ```
 *
 * @throws {TypeError} If `handler` is no function.
 * @throws {RangeError} If `timeout` or `maxClients` is out of its range.
 * @throws {Error} What `Deno.listen` throws, or the reason of an aborted `signal`.
 */
export function serve<C extends Deno.Conn<Deno.NetAddr> = Deno.TcpConn>(
  options: ServeOptions<C>,
): Server {
  try {
    return new TcpServer(options);
  } catch (error) {
    options.listener?.[Symbol.dispose]();
    throw error;
  }
}

class TcpServer<C extends Deno.Conn<Deno.NetAddr>> implements Server {
  readonly addr: Deno.NetAddr;
  readonly finished: Promise<void>;
  readonly #options: ServeOptions<C>;
  readonly #timeout: number;
  readonly #maxClients: number;
  readonly #listener: Deno.Listener<C, Deno.NetAddr>;
  readonly #sessions: TimedSession[] = []; // of handlers that have not settled
  #timekeeper: ReturnType<typeof keepTime> | undefined; // set while there are any
  #accepted = 0; // clients since the start
  #isStopping = false; // set by `shutdown`, for good
  #tellThatOneLeft = () => {}; // ends the wait of `#untilOneLeaves`
  #lastComplaint = -Infinity; // when accepting was last said to fail

  constructor(options: ServeOptions<C>) {
    const { hostname = DEFAULTS.hostname, port = DEFAULTS.port } = options;
    this.#options = options;
    this.#timeout = options.timeout ?? DEFAULTS.timeout;
    this.#maxClients = options.maxClients ?? DEFAULTS.maxClients;
    checkHandler(options.handler);
    checkTimeout(this.#timeout);
    const most = this.#maxClients;
    if (!(most >= 1 && (Number.isInteger(most) || most === Infinity))) {
      throw new RangeError(`maxClients is no whole number from 1: ${most}`);
    }
    options.signal?.throwIfAborted();
    // 1. Listen. The kernel keeps clients in the backlog until they are accepted.
    // Deno's default of 511 overflows in a burst, which costs each client that
    // did not fit a second.
    const address = { hostname, port, tcpBacklog: 4096 };
    this.#listener = options.listener ??
      Deno.listen(address) as Deno.Listener<never, Deno.NetAddr>;
    this.addr = this.#listener.addr;
    options.signal?.addEventListener("abort", this.#abort);
    this.finished = this.#acceptAll();
  }

  get clients(): number {
    return this.#sessions.length;
  }

  async #acceptAll(): Promise<void> {
    while (!this.#isStopping) {
      // No room: further clients wait in the kernel's queue. None is refused.
      if (this.clients >= this.#maxClients) {
        await this.#untilOneLeaves();
        continue;
      }
      try {
        const connection = await this.#listener.accept(); // 2. Accept.
        // Deno learns only in a turn of its event loop that a fresh connection can
        // be written to, and while it accepts others such turns are rare: of
        // thousands of clients, some would wait for a second. A write of nothing
        // ends with that turn. Over TLS it would wait for the peer's handshake.
        if (++this.#accepted % 32 === 0 && isTcp(connection)) {
          await connection.write(new Uint8Array(0)).catch(() => {}); // met again
        }
        // Not awaited, or one client would hold up the next. Never rejects.
        if (!this.#isStopping) this.#serve(connection);
        else connection.close(); // It came at the last moment.
      } catch (error) {
        if (!this.#isStopping) await this.#onAcceptError(error);
      }
    }
    while (this.clients > 0) await this.#untilOneLeaves();
    this.#options.signal?.removeEventListener("abort", this.#abort);
  }

  /** Only `#acceptAll` waits, so one is to be told. */
  #untilOneLeaves(): Promise<void> {
    return new Promise((resolve) => this.#tellThatOneLeft = resolve);
  }

  /** Goes on, stops, or says that no client can be accepted, and pauses. */
  async #onAcceptError(error: unknown): Promise<void> {
    if (isOneOf(CLIENT_IS_LOST, error)) return;
    // The owner of the listener has closed it.
    if (isOneOf(["BadResource"], error)) return void this.shutdown();
    if (performance.now() - this.#lastComplaint >= 60_000) {
      this.#lastComplaint = performance.now();
      const what = "no client can be accepted for now, still trying";
      const why = error instanceof Error ? error.message : error;
      report(`error: ${what}: ${why}`); // Not awaited: stderr may be stalled.
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }

  /** Serves one client, from its acceptance to its close. Never rejects. */
  async #serve(connection: C): Promise<void> {
    const { handler, noDelay, onError = showError } = this.#options;
    const session = new TimedSession(connection, this.#timeout);
    session.index = this.#sessions.push(session) - 1;
    this.#timekeeper ??= keepTime(this.#sessions);
    try {
      await session.run(handler, noDelay); // 3 to 5. Run the handler. 6. Close.
    } catch (error) {
      // Not awaited: it may return `finished`, which waits for this client.
      Promise.try(onError, error, connection.remoteAddr).catch(report);
    }
    // The last one takes its place. A `Set` costs a busy server a tenth more.
    const last = this.#sessions.pop()!;
    if (last !== session) this.#sessions[last.index = session.index] = last;
    if (this.clients === 0) {
      clearInterval(this.#timekeeper);
      this.#timekeeper = undefined;
    }
    this.#tellThatOneLeft();
  }

  // A field, so that it can be passed on as it is.
  readonly shutdown = (grace?: number): Promise<void> => {
    this.#isStopping = true;
    // Makes a pending accept reject. Not `close()`: a second call does nothing.
    this.#listener[Symbol.dispose]();
    // Where it is passed on, it may be given an event. A longer timer fires at once.
    if (typeof grace === "number" && grace < 2 ** 31) {
      const reason = new DOMException("the server shuts down", "AbortError");
      const timer = setTimeout(() => this.#endAll(reason), grace);
      this.finished.then(() => clearTimeout(timer)); // never rejects
    }
    return this.finished;
  };
  readonly [Symbol.asyncDispose] = this.shutdown;

  readonly #abort = (): void => {
    this.shutdown(); // `finished` waits for it.
    this.#endAll(this.#options.signal?.reason);
  };

  #endAll(reason: unknown): void {
    for (const session of this.#sessions) session.end(reason);
  }
}

const isTcp = (connection: Deno.Conn): connection is Deno.TcpConn =>
  "setNoDelay" in connection; // not TLS

/** The time of a connection, and its early end. Each handler is given one. */
export interface Session {
  /**
   * Starts the time anew: that of the option, or other milliseconds until the next
   * call. So `renew()` undoes `renew(400)` and `renew(Infinity)`. Throws a
   * `RangeError` if they are no number above 0.
   */
  renew(timeout?: number): void;
  /**
   * Closes early. The reason is what `onError` gets, or `withSession` rejects with.
   * To the peer it looks like any other end: a message must say itself where it
   * ends, by a line end or a length. Does nothing after the end.
   */
  end(reason: unknown): void;
  /**
   * Aborted at any early end, with its reason: for what else is awaited. A peer that
   * leaves does not abort it: that shows in a read.
   */
  readonly signal: AbortSignal;
}

/**
 * Runs a handler, with the rules of {@linkcode ServeOptions.handler}, on any
 * connection, and closes it on every path. Resolves to what the handler gave.
 *
 * ```ts
 * import { Reader, withSession } from "./server.ts";
 *
 * const signal = AbortSignal.timeout(10_000); // for connecting
 * const connection = await Deno.connect({ port: 8888, signal });
 * const read = () => new Reader(connection).readAll();
 * console.log(await withSession(connection, read, { timeout: 5_000 }));
 * ```
 *
 * @throws {TypeError} If `handler` is no function.
 * @throws {RangeError} If `timeout` is out of its range.
 * @throws {Error} What the handler throws, or the reason of an early end: if
 * `signal` is aborted before, the handler is not called.
 */
export async function withSession<C extends Deno.Conn, T>(
  connection: C,
  handler: (connection: NoInfer<C>, session: Session) => T | Promise<T>,
  options: SessionOptions = {},
): Promise<T> {
  using _ = connection; // Closes it, also where an option is wrong.
  const { timeout = DEFAULTS.timeout, signal, noDelay } = options;
  checkHandler(handler);
  const session = new TimedSession(connection, timeout);
  signal?.throwIfAborted();
  const abort = () => session.end(signal?.reason);
  signal?.addEventListener("abort", abort);
  const timekeeper = keepTime([session]);
  try {
    return await session.run(handler, noDelay);
  } finally {
    clearInterval(timekeeper);
    signal?.removeEventListener("abort", abort);
  }
}

function checkHandler(handler: unknown): void {
  if (typeof handler === "function") return;
  throw new TypeError(`handler is no function: ${handler}`);
}

function checkTimeout(timeout: unknown): void {
  if (typeof timeout === "number" && timeout > 0) return;
  throw new RangeError(`timeout is no number above 0: ${timeout}`);
}

/** Ends the sessions whose time is up, until the interval is cleared. */
function keepTime(sessions: TimedSession[]) {
  let lastLook = -Infinity;
  return setInterval(() => {
    for (const session of sessions) {
      // Not what is late for the first time: after a standstill (Ctrl-Z, a
      // paused container), what has long arrived has 50 ms to be read.
      const isUp = session.endsAt <= lastLook;
      if (isUp) session.end(new DOMException("time is up", "TimeoutError"));
    }
    lastLook = performance.now();
  }, 50);
}

const GIVEN_REASONS = new WeakSet<Error>(); // for early ends

class TimedSession<C extends Deno.Conn = Deno.Conn> implements Session {
  endsAt = 0; // when its time is up
  index = 0; // its place among the sessions of a server
  readonly #connection: C;
  readonly #timeout: number;
  #isOver = false;
  #earlyEnd?: { reason: unknown };
  #controller?: AbortController; // made where `signal` is asked for: it is dear

  constructor(connection: C, timeout: number) {
    this.#connection = connection;
    this.#timeout = timeout;
    this.renew();
  }

  renew(timeout: number = this.#timeout): void {
    checkTimeout(timeout);
    this.endsAt = performance.now() + timeout;
  }

  end(reason: unknown): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.endsAt = Infinity; // It is not ended again, where its handler goes on.
    this.#earlyEnd = { reason };
    if (reason instanceof Error) GIVEN_REASONS.add(reason);
    this.#connection[Symbol.dispose](); // not `close()`: it may be closed
    this.#controller?.abort(reason);
  }

  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#earlyEnd) this.#controller.abort(this.#earlyEnd.reason);
    return this.#controller.signal;
  }

  /** Runs the handler and closes. Throws the reason of an early end. */
  async run<T>(
    handler: (connection: C, session: Session) => T | Promise<T>,
    noDelay = true,
  ): Promise<T> {
    const connection = this.#connection;
    try {
      if (noDelay && isTcp(connection)) connection.setNoDelay();
      const result = await handler(connection, this);
      if (this.#earlyEnd) throw this.#earlyEnd.reason;
      return result;
    } catch (error) {
      throw this.#earlyEnd && isOneOf(CUT, error)
        ? this.#earlyEnd.reason
        : error;
    } finally {
      this.#isOver = true;
      connection[Symbol.dispose](); // 6. Close, on every path.
    }
  }
}

const encoder = new TextEncoder();
// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
const LAST_SEND = Symbol("last send"); // of a writer; a `WeakMap` costs more

/**
 * Sends all of the data, a text in UTF-8: one write may take only a part. Of
 * several at once on one connection, each is whole, in the order of the calls.
 * Until then, leave the bytes as they are. Rejects with what `write` rejects with.
 */
export function sendAll(
  writer: Pick<Deno.Conn, "write">,
  data: string | Uint8Array,
): Promise<void> {
  const sends = writer as { [LAST_SEND]?: Promise<void> };
  const send = async () => {
    let rest = typeof data === "string" ? encoder.encode(data) : data;
    while (rest.length > 0) rest = rest.subarray(await writer.write(rest));
  };
  return sends[LAST_SEND] = sends[LAST_SEND]?.then(send, send) ?? send();
}

const MOST = 65_536; // bytes of a message
const SMALL = 4096, LARGE = 65_536; // bytes that a Reader reads at once

/**
 * Reads lines, so many bytes, or the rest, in turn: one read is not one message.
 * Texts are UTF-8, with U+FFFD for other bytes.
 *
 * ```ts
 * import { Reader } from "./server.ts";
 *
 * using connection = await Deno.connect({ port: 9000 });
 * const reader = new Reader(connection, 1_000_000);
 * const length = await reader.readLine();
 * const body = await reader.readExactly(Number(length));
 * ```
 *
 * - More bytes than the limit, 65,536 by default, are `InvalidData`, as a peer may
 *   send any number. `Infinity` is no limit.
 * - Await each call: one while another is pending is a `TypeError`, also where that
 *   one has lost a `Promise.race`.
 */
export class Reader {
  readonly #source: Pick<Deno.Conn, "read">;
  readonly #limit: number;
  #buffer = new Uint8Array(128); // small at first: a silent peer holds it
  #filled = this.#buffer.subarray(0, 0); // the part of it that was read into
  #start = 0; // where what is not taken yet starts in it
  #lastCount = 0; // bytes of the last read
  #isEnded = false;
  #isPending = false;

  /** Reads from a connection, `Deno.stdin`, or what else has such a `read`. */
  constructor(source: Pick<Deno.Conn, "read">, limit: number = MOST) {
    this.#source = source;
    this.#limit = limit;
  }

  /** What has come and is not taken: a view. After it, the source has the rest. */
  get buffered(): Uint8Array<ArrayBuffer> {
    return this.#filled.subarray(this.#start);
  }

  /** The next line, without its `\n` or `\r\n`, or `null` after the last. */
  async readLine(): Promise<string | null> {
    this.#begin();
    try {
      let searched = 0; // bytes without a line end
      for (;;) {
        const lineEnd = this.#filled.indexOf(0x0a, this.#start + searched); // \n
        if (lineEnd >= 0) return this.#takeLine(lineEnd);
        const bytes = this.buffered;
        if (this.#isEnded) return bytes.length > 0 ? this.#takeRest() : null;
        // A last \r may go with a \n that is still to come.
        this.#check(bytes.at(-1) === 0x0d ? bytes.length - 1 : bytes.length);
        searched = bytes.length;
        await this.#readOn();
      }
    } finally {
      this.#isPending = false;
    }
  }

  /** The lines, as `readLine` gives them. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    for (let line; (line = await this.readLine()) !== null;) yield line;
  }

  /** So many bytes, as a copy. `null` at the end, within them `UnexpectedEof`. */
  async readExactly(count: number): Promise<Uint8Array<ArrayBuffer> | null> {
    this.#begin();
    try {
      this.#check(count);
      while (this.#filled.length - this.#start < count && !this.#isEnded) {
        await this.#readOn();
      }
      const start = this.#start;
      if (this.#filled.length - start >= count) {
        this.#start += count;
        return this.#filled.slice(start, this.#start);
      }
      if (this.#filled.length === start) return null;
      throw new Deno.errors.UnexpectedEof("the peer ended within a message");
    } finally {
      this.#isPending = false;
    }
  }

  /** The rest, as a text. */
  async readAll(): Promise<string> {
    this.#begin();
    try {
      while (!this.#isEnded) {
        this.#check(this.#filled.length - this.#start);
        await this.#readOn();
      }
      return this.#takeRest();
    } finally {
      this.#isPending = false;
    }
  }

  #begin(): void {
    if (this.#isPending) throw new TypeError("a call is pending: await it");
    this.#isPending = true;
  }

  #check(length: number): void {
    if (length >= 0 && length <= this.#limit && length % 1 === 0) return;
    const most = this.#limit;
    throw new Deno.errors.InvalidData(`${length} bytes, at most ${most}`);
  }

  #takeLine(lineEnd: number): string {
    const hasReturn = this.#filled[lineEnd - 1] === 0x0d &&
      lineEnd > this.#start;
    const end = hasReturn ? lineEnd - 1 : lineEnd;
    const bytes = this.#filled.subarray(this.#start, end);
    this.#check(bytes.length);
    this.#start = lineEnd + 1;
    return decoder.decode(bytes);
  }

  #takeRest(): string {
    const bytes = this.buffered;
    this.#check(bytes.length);
    this.#start = this.#filled.length;
    return decoder.decode(bytes);
  }

  async #readOn(): Promise<void> {
    const kept = this.buffered;
    const isFull = this.#filled.length === this.#buffer.length;
    const isTooLarge = kept.length === 0 && this.#buffer.length > SMALL;
    if (isFull || isTooLarge) {
      // Within a message that comes fast, much at once. Before one, where a peer
      // may stay silent, a Reader holds little.
      const isFast = kept.length > 0 && this.#lastCount >= SMALL;
      const size = Math.max(isFast ? LARGE : SMALL, 2 * kept.length);
      this.#buffer = new Uint8Array(size);
      this.#buffer.set(kept);
      this.#filled = this.#buffer.subarray(0, kept.length);
      this.#start = 0;
    }
    const { length } = this.#filled;
    const count = await this.#source.read(this.#buffer.subarray(length));
    this.#isEnded = count === null;
    this.#lastCount = count ?? 0;
    this.#filled = this.#buffer.subarray(0, length + this.#lastCount);
  }
}

/**
 * Calls back at the first stop signal: Ctrl-C, or SIGTERM. From a tenth of a second
 * on, a second one ends the program. To dispose of what it gives stops it listening.
 *
 * ```ts
 * import { onStopSignal, serve } from "./server.ts";
 *
 * const server = serve({ handler: () => {} });
 * onStopSignal(() => server.shutdown(5_000));
 * ```
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

/** By class or code: where accepting meets these, only one client is lost. */
const CLIENT_IS_LOST = ["ConnectionReset", "ConnectionAborted", "NotConnected"]
  .concat("ECONNRESET", "ECONNABORTED", "ENOTCONN");

/** What can happen on any connection, whatever its handler does. */
const USUAL = CLIENT_IS_LOST
  .concat("BrokenPipe", "TimedOut", "NetworkUnreachable")
  .concat("EPIPE", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")
  .concat("InvalidData", "UnexpectedEof") // of a Reader, and of TLS
  .concat("TimeoutError", "AbortError"); // the time that is up, the shutdown

/** What rejects after an early end: reads, writes, and what Node gave `signal`. */
const CUT = ["BadResource", "Interrupted", "AbortError"];

const isOneOf = (names: string[], error: unknown) =>
  error instanceof Error && (names.includes(error.name) ||
    "code" in error && names.includes(`${error.code}`));

let unshown = 0; // errors that stderr has not taken yet

/**
 * The default of `onError`: shows an error on stderr, after the client's address. One
 * line is what can happen on any connection, such as a reset or the time that is up,
 * and the reason that was given for an early end. All else has its stack.
 */
export function showError(error: unknown, client: Deno.NetAddr): void {
  const isGiven = error instanceof Error && GIVEN_REASONS.has(error);
  const isShort = isGiven || isOneOf(USUAL, error);
  if (unshown >= 1000) return; // Nobody reads stderr, and more would fill memory.
  unshown++;
  report(isShort ? printable(`${error}`) : error, `${format(client)} `)
    .then(() => unshown--);
}

// The command

const SCRIPT = "server.ts";
const HELP = `Sends each TCP client a greeting and reads its reply.

usage: deno run --allow-net server.ts [flags]

  --host HOST        the address to listen on (${DEFAULTS.hostname})
  --port, -p PORT    the port to listen on; 0 picks a free one (${DEFAULTS.port})
  --greeting TEXT    what each client is sent (${DEFAULTS.greeting})
  --timeout SECONDS  to the end of a client's reply (${DEFAULTS.timeout / 1000})
  --max-clients N    clients served at once; further ones wait (${DEFAULTS.maxClients})
  --once             serve one client, then end (off)
  --quiet, -q        no line per client (off)
  --help, -h         show this help (off)`;

/** Runs the command. Gives 0 for success, 1 for failure, 2 for wrong flags. */
export async function main(args: string[]): Promise<number> {
  const out = new LineWriter();
  try {
    const flags = await readFlags(args, {
      host: DEFAULTS.hostname,
      port: DEFAULTS.port,
      greeting: DEFAULTS.greeting,
      timeout: DEFAULTS.timeout / 1000,
      "max-clients": DEFAULTS.maxClients,
    }, ["once", "quiet", "help"]);
    if (!flags.isOn("help")) return await run(flags, out);
    out.print(HELP);
    return await out.flush() ? 0 : 1;
  } catch (error) {
    return await reportFailure(error);
  }
}

/** Serves until a stop signal, or with `--once` one client. Gives the exit code. */
async function run(flags: Flags, out: LineWriter): Promise<number> {
  const options = {
    hostname: flags.host(),
    port: flags.number("port", "whole number", 0, 65_535),
    timeout: 1000 * flags.number("timeout", "number", 0.001, 2_147_483),
    maxClients: flags.number("max-clients", "whole number", 1, 2 ** 53 - 1),
    noDelay: false, // One message needs none. It is a system call for each client.
  };
  const greeting = encoder.encode(flags.text("greeting")); // once for all clients
  const once = flags.isOn("once");
  const quiet = flags.isOn("quiet");
  let code = once ? 1 : 0; // with `--once`, 0 when its client has replied or left
  let served = 0;
  const show = (client: Deno.NetAddr, outcome: string) => {
    if (!quiet) out.print(`${format(client)} ${outcome}`);
  };
  const handler = async (connection: Deno.TcpConn) => {
    served++;
    show(connection.remoteAddr, "connected");
    if (once) server.shutdown(); // `finished` is awaited below.
    const reply = await greet(connection, greeting);
    const outcome = reply ? `replied: ${shown(reply)}` : "left without a reply";
    show(connection.remoteAddr, outcome);
    code = 0;
  };
  const onError = (error: unknown, client: Deno.NetAddr) => {
    const outcome = outcomeOf(error);
    show(client, outcome);
    if (outcome === "failed") report(error);
  };
  let server: Server;
  try {
    server = serve({ ...options, handler, onError });
  } catch (error) {
    throw new Failure(explain(error as Error, format(options)));
  }
  let isServing = true;
  // Not earlier: where `Deno.listen` asks for the permission, a signal ends it.
  using _ = onStopSignal(() => {
    if (isServing) out.print(`Stopping: ${clients(server.clients)} to finish`);
    server.shutdown(); // as above
  });
  out.print(`Listening on ${format(server.addr)}`);
  await server.finished;
  isServing = false;
  out.print(`Served ${clients(served)}`);
  const isPrinted = await out.flush();
  return isPrinted || !once ? code : 1;
}

/** What is printed of a client whose exchange ended with an error. */
function outcomeOf(error: unknown): string {
  if (isOneOf(["TimeoutError"], error)) return "timed out";
  if (isOneOf(["InvalidData"], error)) return "sent too long a reply";
  return isOneOf(USUAL, error) ? "reset the connection" : "failed";
}

function explain({ name, message }: Error, address: string): string {
  switch (name) {
    case "AddrInUse":
      return `${address} is in use; choose another port with --port`;
    case "AddrNotAvailable":
      return `${address} is not an address of this machine; choose another with --host`;
    case "PermissionDenied":
      return `the system does not allow listening on ${address}; choose a port from 1024 with --port`;
    case "NotCapable":
      return `no permission to listen on ${address}; run with --allow-net=${address}`;
  }
  return `cannot listen on ${address}: ${message}`;
}

const clients = (count: number) => `${count} client${count === 1 ? "" : "s"}`;

/**
 * Prints without blocking. While the reader of a pipe does not read, or after
 * Ctrl-S, `console.log` would hold up every connection, and the stop signals.
 */
class LineWriter {
  #waiting = ""; // lines, written together: one by one costs half as much again
  #writing: Promise<void> = Promise.resolve();
  #complaint: Promise<void> | undefined; // set where lines are lost

  print(line: string): void {
    const isFirst = this.#waiting === "";
    if (this.#waiting.length + line.length < 2 ** 24) {
      this.#waiting += `${line}\n`;
    } else this.#fail("nobody reads the lines"); // No more of them can wait.
    if (isFirst) this.#writing = this.#writing.then(() => this.#write());
  }

  async #write(): Promise<void> {
    const lines = this.#waiting;
    this.#waiting = "";
    await sendAll(Deno.stdout, lines).catch((error) =>
      this.#fail(error.message)
    );
  }

  /** Says it once. A server that goes on does so with its lines or without. */
  #fail(message: string): void {
    this.#complaint ??= report(`error: cannot print: ${message}`);
  }

  /** Waits until all is written, 5 s at most. Resolves to whether it is. */
  async flush(): Promise<boolean> {
    const isWritten = await within(5_000, this.#writing);
    if (!isWritten) this.#fail("nobody reads the lines");
    await within(1_000, this.#complaint); // Perhaps nobody reads that, either.
    return this.#complaint === undefined;
  }
}

/** Whether it settles within so many milliseconds. It must not reject. */
async function within(most: number, promise?: Promise<void>): Promise<boolean> {
  const { promise: isSettled, resolve } = Promise.withResolvers<boolean>();
  const timer = setTimeout(resolve, most, false);
  Promise.resolve(promise).then(() => resolve(true));
  return await isSettled.finally(() => clearTimeout(timer));
}

// From here to the last line, both scripts are the same: each has to run alone.

/** A peer's text on one line, with `\u001b` and such for what terminals obey. */
export function printable(text: string): string {
  const controls = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}\ufeff]/gu;
  const names = new Map([["\n", "\\n"], ["\r", "\\r"], ["\t", "\\t"]]);
  const code = (one: string) => one.charCodeAt(0).toString(16).padStart(4, "0");
  return text.replace(controls, (one) => names.get(one) ?? `\\u${code(one)}`);
}

/** The same, without the line end that nc and telnet add. */
const shown = (text: string) => printable(text.replace(/\r?\n$/, ""));
const format = ({ hostname: name, port }: { hostname: string; port: number }) =>
  `${name.includes(":") ? `[${name}]` : name}:${port}`;

/** Shows an error, which may quote a peer, without blocking. Never rejects. */
async function report(error: unknown, prefix = ""): Promise<void> {
  const text = typeof error === "string" ? error : Deno.inspect(error);
  const lines = `${prefix}${text}`.split("\n").map(printable).join("\n");
  // Where that fails, there is no other place to say it.
  await sendAll(Deno.stderr, `${lines}\n`).catch(() => {});
}

class Failure extends Error {
  code = 1; // that the command ends with
}

async function reportFailure(error: unknown): Promise<number> {
  if (!(error instanceof Failure)) throw error;
  await report(`error: ${error.message}`);
  return error.code;
}

type Texts = Record<string, string | number>; // with their defaults
type Flags = Awaited<ReturnType<typeof readFlags>>;

async function readFlags(args: string[], texts: Texts, switches: string[]) {
  // Here, so that a program that imports this script needs no JSR, and in full, as
  // a script that runs alone has no deno.json to look a name up in.
  // deno-lint-ignore no-import-prefix
  const parser = import("jsr:@std/cli@^1.0.32/parse-args");
  const { parseArgs } = await parser.catch(() => {
    const task = `in a clone, use: deno task run ${SCRIPT}`;
    throw new Failure(`@std/cli could not be had from JSR; ${task}`);
  });
  const wrong = (text: string) =>
    Object.assign(new Failure(`${text}; see --help`), { code: 2 });
  // It would be on, whatever the value, or the flag behind it.
  const names = switches.join("|");
  const valued = RegExp(`^(--(${names})(?==)|-[qh]+(?=.*[^a-zA-Z]))`);
  const [found] = args.flatMap((arg) => valued.exec(arg)?.[0] ?? []);
  if (found) throw wrong(`${found} takes no value`);
  const unexpected: unknown[] = [];
  const flags = parseArgs(args, {
    string: Object.keys(texts),
    boolean: switches,
    alias: { port: "p", quiet: "q", help: "h" },
    default: texts,
    unknown: (arg: string) => (unexpected.push(arg), false),
  });
  const empty = Object.keys(texts).find((name) => flags[name] === "");
  if (empty) throw wrong(`--${empty} needs a value: --${empty}=VALUE`);
  const [extra] = [...unexpected, ...flags._];
  if (extra !== undefined) throw wrong(`unexpected "${extra}"`);
  return {
    text: (name: string) => `${flags[name]}`,
    host: () => `${flags["host"]}`.replace(/^\[(.*)\]$/, "$1"), // as a URL has it
    isOn: (name: string) => Boolean(flags[name]),
    number(name: string, kind: string, least: number, most: number) {
      const form = kind === "number" ? /^\d+(\.\d+)?$/ : /^\d+$/;
      const value = form.test(this.text(name)) ? Number(this.text(name)) : NaN;
      if (value >= least && value <= most) return value;
      const range = `a ${kind} from ${least} to ${most}`;
      throw wrong(`--${name} must be ${range}, not "${this.text(name)}"`);
    },
  };
}

if (import.meta.main) Deno.exit(await main(Deno.args));
