#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP server: it sends each client a greeting, reads the client's reply, and
 * closes. As a command: `deno run --allow-net server.ts`.
 *
 * As a library, for both sides of a protocol of your own:
 *
 * ```ts
 * import { Peer, serve } from "./server.ts";
 *
 * serve({ // a server that sends each line back
 *   port: 9000,
 *   handler: async (client) => {
 *     for await (const line of client) await client.send(`${line}\n`);
 *   },
 * });
 *
 * // and a client of it
 * await using server = new Peer(await Deno.connect({ port: 9000 }));
 * await server.send("hello\n");
 * console.log(await server.readLine());
 * ```
 *
 * From top to bottom:
 *
 * - {@linkcode greet}: steps 3 to 5, the exchange with one client
 * - {@linkcode serve}: the server around it: listen (1), accept (2), close (6)
 * - {@linkcode Peer}: one connection, with what is read, sent and waited for on it
 * - {@linkcode onStopSignal} and {@linkcode showError}: what most servers also need
 * - {@linkcode main}: the command
 *
 * @module
 */

/**
 * The exchange with one client, steps 3 to 5.
 *
 * ```ts
 * import { greet, serve } from "./server.ts";
 *
 * serve({ handler: async (client) => console.log(await greet(client, "hello")) });
 * ```
 *
 * @returns The reply, `""` if the client left without one.
 * @throws {Deno.errors.InvalidData} If the reply is longer than the peer's `limit`.
 * @throws {Error} What else ended the connection before the reply had ended.
 */
export async function greet(
  client: Peer<Deno.Conn>,
  greeting: string | Uint8Array,
): Promise<string> {
  try {
    client.send(greeting); // 3. Greet. Where that fails, so does the next step.
    // 4. Half-close, Python's `shutdown(SHUT_WR)`. A close would shut the reply out,
    // and without either the client could not tell where the greeting ends.
    await client.closeWrite();
  } catch (error) {
    // A client may have replied and gone before it was greeted. Its reply is
    // whole, and still there to be read. Any other error breaks the reply off.
    if (!hasLeft(error)) throw error;
  }
  return await client.readAll(); // 5. Read the reply to its end.
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  greeting: "你好,客戶端,我是服務器",
  timeout: 10_000, // milliseconds
  limit: 65_536, // bytes
  maxClients: 1024,
};

/** Options of a {@linkcode Peer}, and of {@linkcode serve} for each client. */
export interface PeerOptions {
  /**
   * What the peer may take, in milliseconds: 10,000 by default. It holds for each read
   * in total, and anew each time it takes some of what is sent.
   *
   * - The peer is ended 50 to 150 ms after.
   * - What the handler does meanwhile does not count, and neither does a standstill
   *   of the program.
   * - With `Infinity`, a peer whose machine vanished stays for good.
   */
  timeout?: number | undefined;
  /**
   * The most bytes of a line, of `readExactly`, of `readAll`: 65,536 by default, or
   * `Infinity`. More rejects with `InvalidData`.
   */
  limit?: number | undefined;
  /** Aborting it ends the peer with its reason. In `serve` it ends all, and accepting. */
  signal?: AbortSignal | undefined;
  /**
   * Turns off Nagle's algorithm, which holds small writes back: true by default. Over
   * TLS it stays on. There, send a message in one call: a second part waits.
   */
  noDelay?: boolean | undefined;
}

/** What a listener accepts; without one, a `Deno.TcpConn`. */
export type ConnectionOf<L> = L extends Deno.Listener
  ? Awaited<ReturnType<L["accept"]>>
  : Deno.TcpConn;

/** The address of a listener; without one, a `Deno.NetAddr`. */
export type AddressOf<L> = L extends Deno.Listener ? L["addr"] : Deno.NetAddr;

/** Options of {@linkcode serve}. */
export interface ServeOptions<L extends Deno.Listener | undefined = undefined>
  extends PeerOptions {
  /**
   * All that is done with a client, whose connection is closed when it has settled.
   *
   * - Await, or stop, all that it starts: what is left meets a closed connection.
   * - A shutdown calls `client.stop()`: the loops of lines and of `hasMore` end.
   * - It must await neither `finished` nor `shutdown()`, as these wait for it.
   */
  handler: (client: Peer<ConnectionOf<NoInfer<L>>>) => unknown;
  /**
   * Called once, after the close, where a client failed: {@linkcode showError} by
   * default. It is not waited for, and what it throws is shown on stderr. It gets:
   *
   * - what the handler threw
   * - or the reason of an early end, which no call has rejected with
   * - or why a send failed that nobody awaited
   */
  onError?:
    | ((error: unknown, client: Peer<ConnectionOf<NoInfer<L>>>) => unknown)
    | undefined;
  /** Where to listen: 127.0.0.1 by default, which only this machine reaches. */
  hostname?: string | undefined;
  /** The port to listen on, 8888 by default; 0 picks a free one. */
  port?: number | undefined;
  /**
   * Where to accept instead, such as what `Deno.listenTls` gives. The server closes
   * it, also where `serve` throws. If you close it, the server shuts down when it
   * would next accept.
   */
  listener?: L | undefined;
  /** Clients served at once, 1024 by default, or `Infinity`. Others wait. */
  maxClients?: number | undefined;
}

/** A running server. `await using` shuts it down at the end of the block. */
export interface Server<A extends Deno.Addr = Deno.NetAddr>
  extends AsyncDisposable {
  /** The address that the server listens on. */
  readonly addr: A;
  /** How many clients are being served. A client counts until its close. */
  readonly clients: number;
  /** Resolves after a shutdown or abort, when all clients are closed. */
  readonly finished: Promise<void>;
  /**
   * Accepts no more, and resets who waits in the kernel's queue. It calls `stop()` of
   * each client, and resolves with `finished`.
   *
   * - Who is left after `grace` milliseconds is ended, with a `DOMException` named
   *   `AbortError`. Without it, all are waited for.
   * - A later call can set a grace.
   */
  shutdown(grace?: number): Promise<void>;
}

/**
 * Starts a server, and returns at once.
 *
 * ```ts
 * import { serve } from "./server.ts";
 *
 * const server = serve({ handler: (client) => client.send(`${Date()}\n`) });
 * console.log(`Listening on port ${server.addr.port}`);
 * ```
 *
 * @throws {TypeError} If `handler` is no function.
 * @throws {RangeError} If `timeout`, `limit` or `maxClients` is out of its range.
 * @throws {Error} What `Deno.listen` throws, or the reason of an aborted `signal`.
 */
export function serve<L extends Deno.Listener | undefined = undefined>(
  options: ServeOptions<L>,
): Server<AddressOf<L>> {
  try {
    return new TcpServer(options);
  } catch (error) {
    options.listener?.[Symbol.dispose]();
    throw error;
  }
}

class TcpServer<L extends Deno.Listener | undefined>
  implements Server<AddressOf<L>> {
  readonly addr: AddressOf<L>;
  readonly finished: Promise<void>;
  readonly #options: ServeOptions<L>;
  readonly #peerOptions: PeerOptions;
  readonly #maxClients: number;
  readonly #listener: Deno.Listener;
  // Each until its close. With a `Set`, those who left are kept alive by old tables of
  // it: CPU rises by a tenth, which `deno task bench` shows.
  readonly #clients: (Peer<Deno.Conn> | undefined)[] = [];
  readonly #freePlaces: number[] = []; // among them
  #accepted = 0; // clients since the start
  #isStopping = false; // set by `shutdown`, for good
  #tellThatOneLeft = () => {}; // ends the wait of `#untilOneLeaves`
  #lastComplaint = -Infinity; // when accepting was last said to fail

  constructor(options: ServeOptions<L>) {
    const { hostname = DEFAULTS.hostname, port = DEFAULTS.port } = options;
    const { timeout, limit, noDelay, signal, handler } = options;
    if (typeof handler !== "function") {
      throw new TypeError(`handler is no function: ${handler}`);
    }
    this.#options = options;
    this.#peerOptions = checked({ timeout, limit, noDelay });
    const { maxClients = DEFAULTS.maxClients } = options;
    this.#maxClients = checkedCount("maxClients", maxClients);
    signal?.throwIfAborted();
    // 1. Listen. The kernel keeps clients in the backlog until they are accepted.
    // Deno's default of 511 overflows in a burst, which costs each client that
    // did not fit a second.
    const address = { hostname, port, tcpBacklog: 4096 };
    this.#listener = options.listener ?? Deno.listen(address);
    this.addr = this.#listener.addr as AddressOf<L>;
    signal?.addEventListener("abort", this.#abort); // one for all clients
    this.finished = this.#acceptAll();
  }

  get clients(): number {
    return this.#clients.length - this.#freePlaces.length;
  }

  async #acceptAll(): Promise<void> {
    while (!this.#isStopping) {
      if (this.clients >= this.#maxClients) {
        await this.#untilOneLeaves(); // Further ones wait in the kernel's queue.
        continue;
      }
      try {
        const connection = await this.#listener.accept(); // 2. Accept.
        const isLost = ++this.#accepted % 32 === 0 &&
          await isLostWhilePaced(connection);
        // Where it is stopping, it came at the last moment.
        if (isLost || this.#isStopping) connection[Symbol.dispose]();
        // Not awaited, or one client would hold up the next. Never rejects.
        else this.#serve(connection);
      } catch (error) {
        if (!this.#isStopping) await this.#onAcceptError(error);
      }
    }
    while (this.clients > 0) await this.#untilOneLeaves();
    this.#options.signal?.removeEventListener("abort", this.#abort);
  }

  /** Only `#acceptAll` waits here: one callback is enough. */
  #untilOneLeaves(): Promise<void> {
    return new Promise((resolve) => this.#tellThatOneLeft = resolve);
  }

  /** Goes on, stops, or says that no client can be accepted, and pauses. */
  async #onAcceptError(error: unknown): Promise<void> {
    if (isOneOf(ONE_IS_LOST, error)) return;
    // The owner of the listener has closed it.
    if (isOneOf(["BadResource"], error)) return void this.shutdown();
    if (performance.now() - this.#lastComplaint >= 60_000) {
      this.#lastComplaint = performance.now();
      const what = "error: no client can be accepted for now, still trying: ";
      const isShort = isOneOf(RESOURCES_ARE_SHORT, error);
      // Not awaited: stderr may be stalled.
      report(isShort ? (error as Error).message : error, what);
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }

  /** Serves one client, from its acceptance to its close. Never rejects. */
  async #serve(connection: Deno.Conn): Promise<void> {
    const { handler, onError = showError } = this.#options;
    let client: Peer<ConnectionOf<L>>;
    try {
      client = new Peer(connection as ConnectionOf<L>, this.#peerOptions);
    } catch (error) {
      // It has closed the connection. One whose client is gone already may not take
      // an option (macOS: EINVAL).
      if (!isOneOf([...ONE_IS_LOST, "BadResource", "EINVAL"], error)) {
        report(error);
      }
      return;
    }
    const place = this.#freePlaces.pop() ?? this.#clients.length;
    this.#clients[place] = client;
    let failure: { error: unknown } | undefined; // the first, which says why
    try {
      await handler(client); // 3 to 5.
    } catch (error) {
      failure = {
        error: wasEnded(client, error) ? client.signal.reason : error,
      };
    }
    try {
      await client[Symbol.asyncDispose](); // 6. Close, on every path.
    } catch (error) {
      failure ??= { error };
    }
    if (failure) {
      // Not awaited: it may return `finished`, which waits for this client.
      Promise.try(onError, failure.error, client).catch(report);
    }
    this.#clients[place] = undefined;
    this.#freePlaces.push(place);
    this.#tellThatOneLeft();
  }

  // A field, so that it can be passed on as it is.
  readonly shutdown = (grace: number = Infinity): Promise<void> => {
    this.#isStopping = true;
    // Makes a pending accept reject. Not `close()`: a second call does nothing.
    this.#listener[Symbol.dispose]();
    for (const client of this.#clients) client?.stop();
    if (grace < 2 ** 31) { // A longer timer fires at once.
      const reason = new DOMException("the server shuts down", "AbortError");
      const timer = setTimeout(this.#endAll, Math.max(0, grace), reason);
      this.finished.then(() => clearTimeout(timer)); // never rejects
    }
    return this.finished;
  };
  readonly [Symbol.asyncDispose] = (): Promise<void> => this.shutdown();

  readonly #abort = (): void => {
    this.shutdown(); // `finished` waits for it.
    this.#endAll(this.#options.signal?.reason);
  };

  readonly #endAll = (reason: unknown): void => {
    for (const client of this.#clients) client?.end(reason);
  };
}

/** By class or code: where accepting meets these, only one client is lost. */
const ONE_IS_LOST = [
  ...["ConnectionReset", "ConnectionAborted", "NotConnected"],
  ...["ECONNRESET", "ECONNABORTED", "ENOTCONN"],
];
/** And where it meets these, the machine lacks descriptors, or memory. */
const RESOURCES_ARE_SHORT = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"];

/**
 * Paces accepting, by a write of nothing, and gives whether the client is lost. Deno
 * learns only in a turn of its event loop that a fresh connection can be written to,
 * and while it accepts others such turns are rare: of thousands of clients, some would
 * wait for a second. Over TLS, the write would wait for the peer's handshake.
 */
async function isLostWhilePaced(connection: Deno.Conn): Promise<boolean> {
  if (!isTcp(connection)) return false;
  // Where it fails, it takes the error from the socket: no handler would meet it.
  const written = connection.write(new Uint8Array(0));
  return await written.then(() => false, () => true);
}

const isTcp = (connection: Deno.Conn): connection is Deno.TcpConn =>
  "setNoDelay" in connection; // not TLS, not Unix

/** Whether the error comes from the early end of a peer. */
const wasEnded = ({ signal }: Peer<Deno.Conn>, error: unknown): boolean =>
  signal.aborted &&
  isOneOf(["BadResource", "Interrupted", "AbortError"], error);

/** Whether a send failed as the peer had ended, and closed. */
const hasLeft = (error: unknown) =>
  isOneOf(["BrokenPipe", "NotConnected"], error);

/** By class or code. */
function isOneOf(names: string[], error: unknown): boolean {
  try {
    return error instanceof Error && (names.includes(error.name) ||
      "code" in error && names.includes(`${error.code}`));
  } catch { // A getter of the error threw.
    return false;
  }
}

const encoder = new TextEncoder();
// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

// What a Peer reads into. A silent one holds little; what comes fast is read in large
// pieces.
const FIRST_BUFFER = 128, BUFFER = 4096, LARGE_BUFFER = 65_536; // bytes
const EMPTY = new Uint8Array(0);
const MOST_QUEUED = 2 ** 24; // bytes that may wait to be sent
const MOST_PARTS = 2 ** 17; // sends that may wait
// Deno 2.9.6 panics where a TLS peer resets while it writes more at once.
const TLS_RECORD = 16_384; // bytes
const MOST_TIME_TO_SEND = 10_000; // milliseconds, of the close
const LINGERING = 900; // milliseconds; in steps of 50, a second at most

/** Marks a connection that a Peer owns. A `WeakSet` costs a busy server more. */
const OWNED = Symbol("owned by a Peer");

/**
 * One connection, on either side: what is read and sent on it, its time, its end.
 * It owns the connection, and closes it.
 *
 * ```ts
 * import { Peer } from "./server.ts";
 *
 * const signal = AbortSignal.timeout(10_000); // for connecting
 * const connection = await Deno.connect({ port: 8888, signal });
 * await using server = new Peer(connection, { timeout: 5_000 });
 * console.log(await server.readAll());
 * ```
 *
 * - One read is not one message: read a line, so many bytes, or all, in turn.
 * - Await each read: another one while it is pending is a `TypeError`, also where it
 *   has lost a `Promise.race`.
 * - Reads and sends that nobody awaits end no program.
 * - `await using` closes it, without a loss: {@linkcode Peer.[Symbol.asyncDispose]}.
 */
export class Peer<C extends Deno.Conn = Deno.TcpConn>
  implements AsyncIterable<string>, AsyncDisposable {
  /** The connection, for its addresses. Read and send by the peer alone. */
  readonly connection: C;
  #timeout: number;
  readonly #limit: number;

  // What is read
  #buffer = EMPTY;
  #filled = EMPTY; // the part of it that was read into
  #start = 0; // the first byte of it that is not taken
  #searched = 0; // bytes from there that have no line end
  #lastCount = 0; // bytes of the last read
  #filling: Promise<void> | undefined; // a read of the connection
  #input: "open" | "ended" | Failed = "open";
  #isReading = false; // a call is pending
  #tellOfStop = nothing; // ends the wait of this call, between two messages
  readonly #readTime = new Wait(this);

  // What is sent
  #lastStep: Promise<Failed | undefined> | undefined; // after which all is sent
  #steps = 0; // that have not settled
  #parts: Uint8Array[] = []; // of the next step: in a row, they go in one write
  #queued = 0; // bytes
  #hasLastPart = false; // The half-close comes behind it.
  #closesWrite: Promise<void> | undefined; // set by `closeWrite`
  readonly #sendTime = new Wait(this);

  // Its end
  #isStopping = false;
  #isEnded = false; // by `end`
  #state: "open" | "sending the rest" | "lingering" | "closed" = "open";
  #closing: Promise<void> | undefined; // set by the disposal
  #failure: Failed | undefined; // the reason of `end`, or why a send failed
  #controller: AbortController | undefined; // made where `signal` is asked for

  /**
   * Takes over a connection.
   *
   * @throws {TypeError} If the connection has a `Peer` already, which it leaves alone.
   * @throws {RangeError} If an option is out of its range. The connection is closed.
   * @throws {Error} The reason of an aborted `signal`. The connection is closed.
   */
  constructor(connection: C, options: PeerOptions = {}) {
    const own = connection as { [OWNED]?: boolean };
    if (own[OWNED]) throw new TypeError("this connection has a Peer already");
    own[OWNED] = true;
    this.connection = connection;
    try {
      const { timeout, limit, noDelay, signal } = checked(options);
      this.#timeout = timeout;
      this.#limit = limit;
      signal?.throwIfAborted();
      if (noDelay && isTcp(connection)) connection.setNoDelay();
      signal?.addEventListener("abort", () => this.end(signal.reason), {
        signal: this.signal, // Every close aborts it, and so ends the listening.
      });
    } catch (error) {
      connection[Symbol.dispose]();
      throw error;
    }
  }

  // Reading

  /** What has come and is not taken: a view until the next call, also after the end. */
  get buffered(): Uint8Array<ArrayBuffer> {
    return this.#filled.subarray(this.#start);
  }

  /**
   * Waits for a byte of the next message. `false` after the peer's end and after a
   * stop. For messages that are no lines:
   *
   * ```ts
   * import type { Peer } from "./server.ts";
   *
   * async function showPoints(peer: Peer) {
   *   while (await peer.hasMore()) {
   *     const [x, y] = await peer.readExactly(2);
   *     console.log(x, y);
   *   }
   * }
   * ```
   */
  hasMore(): Promise<boolean> {
    return this.#read(this.#takeHasMore, 0, true);
  }

  /**
   * The lines, without their `\n` or `\r\n`, until the peer's end, or a stop: a line
   * that is being waited for, and of which a byte has come, is read first. To leave the
   * loop closes nothing.
   */
  [Symbol.asyncIterator](): AsyncIterator<string, undefined, void> {
    return { next: () => this.#read(this.#takeNext, 0, true) };
  }

  /** The next line, as above, or `null` after the last, which may have no end. */
  readLine(): Promise<string | null> {
    return this.#read(this.#takeLine);
  }

  /**
   * So many bytes, as a copy.
   *
   * @throws {Deno.errors.UnexpectedEof} If they do not come.
   * @throws {Deno.errors.InvalidData} If they are more than the limit.
   * @throws {RangeError} If the count is no whole number from 0.
   */
  readExactly(count: number): Promise<Uint8Array<ArrayBuffer>> {
    return this.#read(this.#takeExactly, count);
  }

  /** What has come, at least a byte, as a copy, or `null` at the peer's end. */
  readSome(): Promise<Uint8Array<ArrayBuffer> | null> {
    return this.#read(this.#takeSome);
  }

  /** The rest, to the peer's end, as a text: UTF-8, with U+FFFD for other bytes. */
  readAll(): Promise<string> {
    return this.#read(this.#takeAll);
  }

  /**
   * Takes from the buffer or, where `take` gives `undefined`, reads on. What is in the
   * buffer costs no more than a promise.
   */
  #read<T>(
    take: (this: Peer<C>, count: number) => T | undefined,
    count = 0,
    isBetweenMessages = false,
  ): Promise<T> {
    try {
      this.#throwIfOver();
      if (this.#isReading) throw new TypeError("a read is pending: await it");
      const taken = take.call(this, count);
      if (taken !== undefined) return Promise.resolve(taken);
    } catch (error) {
      return quiet(Promise.reject(error));
    }
    return quiet(this.#readOn(take, count, isBetweenMessages));
  }

  async #readOn<T>(
    take: (this: Peer<C>, count: number) => T | undefined,
    count: number,
    isBetweenMessages: boolean,
  ): Promise<T> {
    this.#isReading = true;
    this.#readTime.start(this.#timeout);
    try {
      for (;;) {
        // It may be pending since a stop: a read can't be taken back.
        const filling = this.#filling ??= this.#fill();
        await (isBetweenMessages ? this.#untilStopOr(filling) : filling);
        this.#throwIfOver();
        const taken = take.call(this, count);
        if (taken !== undefined) return taken;
      }
    } finally {
      this.#readTime.stop();
      this.#isReading = false;
    }
  }

  /** A stop is not waited for alone: what is being read stays for the next read. */
  #untilStopOr(filling: Promise<void>): Promise<void> {
    return new Promise((resolve) => {
      this.#tellOfStop = resolve;
      filling.then(resolve); // never rejects
    });
  }

  /** Reads once into the buffer. Never rejects: how the input ends is noted. */
  async #fill(): Promise<void> {
    try {
      const count = await this.connection.read(this.#room());
      if (count === null) this.#input = this.#endOfInput();
      else this.#filled = this.#buffer.subarray(0, this.#filled.length + count);
      this.#lastCount = count ?? 0;
    } catch (error) {
      this.#input = { error, isTold: false };
    }
    this.#filling = undefined;
  }

  #endOfInput(): "ended" | Failed {
    // After a failed send, Deno gives an end also where there was a reset.
    const failed = this.#failure;
    // A send of one's own after `closeWrite` says nothing of the peer.
    if (!failed || isOneOf(["BadResource"], failed.error)) return "ended";
    if (!hasLeft(failed.error)) return failed;
    if (this.#state === "open") failed.isTold = true; // by this end
    return "ended";
  }

  /** Where the next bytes go. */
  #room(): Uint8Array<ArrayBuffer> {
    const kept = this.#filled.length - this.#start; // bytes
    const { length } = this.#buffer;
    const isFull = this.#filled.length === length;
    if (isFull || kept === 0 && length > BUFFER) {
      const isFast = isFull && this.#lastCount >= BUFFER;
      const least = length > 0 ? BUFFER : FIRST_BUFFER;
      const size = Math.max(isFast ? LARGE_BUFFER : least, 2 * kept);
      const rest = this.buffered;
      if (size !== length) this.#buffer = new Uint8Array(size);
      this.#buffer.set(rest);
      this.#filled = this.#buffer.subarray(0, kept);
      this.#start = 0;
    }
    return this.#buffer.subarray(this.#filled.length);
  }

  #takeHasMore(): boolean | undefined {
    if (this.#isStopping) return false;
    if (this.#start < this.#filled.length) return true;
    return this.#inputHasEnded(true) ? false : undefined;
  }

  #takeNext(): IteratorResult<string, undefined> | undefined {
    // Before a wait, a stop comes first. In a wait, a line that has begun does.
    const hasBegun = this.#isReading && this.#start < this.#filled.length;
    const isThere = hasBegun || this.#takeHasMore();
    if (isThere === false) return { value: undefined, done: true };
    const line = isThere ? this.#takeLine() : undefined;
    return typeof line === "string" ? { value: line, done: false } : undefined;
  }

  #takeLine(): string | null | undefined {
    const from = this.#start + this.#searched;
    const lineEnd = this.#filled.indexOf(0x0a, from); // \n
    if (lineEnd >= 0) {
      const hasReturn = this.#filled[lineEnd - 1] === 0x0d &&
        lineEnd > this.#start; // \r
      return this.#takeText(hasReturn ? lineEnd - 1 : lineEnd, lineEnd + 1);
    }
    const { length } = this.#filled;
    if (this.#inputHasEnded()) {
      return this.#start < length ? this.#takeText(length) : null;
    }
    // A last \r may go with a \n that is still to come.
    const hasReturn = this.#filled[length - 1] === 0x0d && length > this.#start;
    this.#searched = length - this.#start;
    this.#checkLimit(hasReturn ? this.#searched - 1 : this.#searched);
    return undefined;
  }

  #takeExactly(count: number): Uint8Array<ArrayBuffer> | undefined {
    if (!(count >= 0 && Number.isInteger(count))) {
      throw new RangeError(`no whole number from 0: ${count}`);
    }
    this.#checkLimit(count);
    const end = this.#start + count;
    if (end <= this.#filled.length) return this.#takeBytes(end);
    if (!this.#inputHasEnded()) return undefined;
    throw new Deno.errors.UnexpectedEof("the peer ended within a message");
  }

  #takeSome(): Uint8Array<ArrayBuffer> | null | undefined {
    const { length } = this.#filled;
    if (this.#start < length) return this.#takeBytes(length);
    return this.#inputHasEnded() ? null : undefined;
  }

  #takeAll(): string | undefined {
    if (this.#inputHasEnded()) return this.#takeText(this.#filled.length);
    this.#checkLimit(this.#filled.length - this.#start);
    return undefined;
  }

  #takeBytes(end: number): Uint8Array<ArrayBuffer> {
    const bytes = this.#filled.slice(this.#start, end);
    this.#advance(end);
    return bytes;
  }

  #takeText(end: number, next = end): string {
    const bytes = this.#filled.subarray(this.#start, end);
    this.#checkLimit(bytes.length);
    this.#advance(next);
    return decoder.decode(bytes);
  }

  #advance(to: number): void {
    this.#start = to;
    this.#searched = 0;
  }

  #checkLimit(length: number): void {
    if (length <= this.#limit) return;
    const { InvalidData } = Deno.errors;
    throw new InvalidData(`${length} bytes, at most ${this.#limit}`);
  }

  /** Whether no more comes. Throws where that is no ordinary end. */
  #inputHasEnded(isBetweenMessages = false): boolean {
    if (this.#input === "open") return false;
    if (this.#input === "ended") return true;
    const { error } = this.#input;
    // Over TLS, many peers leave without this word; within a message it may be a cut.
    // An end in the handshake has another text.
    const isUnsaid = error instanceof Deno.errors.UnexpectedEof &&
      error.message.includes("close_notify");
    if (isBetweenMessages && isUnsaid) return true;
    return this.#tell(this.#input);
  }

  #throwIfOver(): void {
    if (this.#isEnded) this.#tell(this.#failure!);
    if (this.#state !== "open") {
      throw new Deno.errors.BadResource("the peer is closed");
    }
  }

  /** Throws it to a caller. The close then says nothing. */
  #tell(failed: Failed): never {
    failed.isTold = true;
    throw failed.error;
  }

  // Sending

  /** Bytes that wait to be sent. */
  get queued(): number {
    return this.#failure ? 0 : this.#queued;
  }

  /**
   * Sends all of it, a text in UTF-8, after what was sent before. Resolves when the
   * system has taken it: await it, and you send no faster than the peer reads.
   *
   * - Until it resolves, leave the bytes as they are.
   * - Where one send fails, so do those behind it. One that nobody awaited is told at
   *   the close.
   * - A send while more than 16 MiB wait, or 131,072 sends, ends the peer.
   *
   * @throws {TypeError} At once, if the data is neither a text nor a `Uint8Array`.
   */
  send(data: string | Uint8Array): Promise<void> {
    const bytes = typeof data === "string" ? encoder.encode(data) : data;
    if (!(bytes instanceof Uint8Array)) {
      throw new TypeError(`neither a text nor bytes: ${typeof data}`);
    }
    const isTooMuch = this.queued > MOST_QUEUED ||
      this.#parts.length >= MOST_PARTS;
    if (isTooMuch && this.#state === "open" && !this.#closesWrite) {
      this.end(new Error("does not read: too much waits to be sent"));
    }
    const refusal = this.#refusal();
    if (refusal) return new Sending(refusal);
    this.#queued += bytes.length;
    if (this.#parts.push(bytes) === 1) this.#lastStep = this.#sendParts();
    return new Sending(this.#lastStep!);
  }

  /** Half-closes, after what was sent before: the peer reads to an end. */
  closeWrite(): Promise<void> {
    return this.#closesWrite ??= new Sending(
      this.#refusal() ?? this.#closeAfterParts(),
    );
  }

  #closeAfterParts(): Promise<Failed | undefined> {
    this.#hasLastPart = true;
    if (this.#steps === 0) this.#lastStep = this.#sendParts();
    return this.#lastStep!;
  }

  /**
   * Sends the parts that have come until those before are sent. Never rejects: gives
   * why it failed. Then what comes behind it fails, too.
   */
  async #sendParts(): Promise<Failed | undefined> {
    this.#steps++;
    if (this.#lastStep) await this.#lastStep;
    this.#sendTime.start(this.#timeout);
    let rest = this.#parts.length === 1 ? this.#parts[0]! : joined(this.#parts);
    this.#parts = [];
    try {
      while (rest.length > 0 && !this.#failure) { // One write may take only a part.
        const count = await this.connection.write(
          isTcp(this.connection) ? rest : rest.subarray(0, TLS_RECORD),
        );
        rest = rest.subarray(count);
        this.#queued -= count;
        this.#sendTime.restart(this.#timeout);
      }
      const isLast = this.#hasLastPart && this.#parts.length === 0;
      if (isLast && !this.#failure) await this.connection.closeWrite();
    } catch (error) {
      // After an early end, it is there, with its reason.
      this.#failure ??= { error, isTold: false };
    }
    this.#sendTime.stop();
    if (--this.#steps === 0) this.#lastStep = undefined;
    return this.#failure;
  }

  /** Why no more can be sent. */
  #refusal(): Promise<Failed> | undefined {
    if (this.#failure) return Promise.resolve(this.#failure);
    // The end of a handler is no failure of what it has left running.
    if (this.#state !== "open") return this.#refuse("the peer is closed", true);
    if (this.#closesWrite) return this.#refuse("sent after closeWrite", false);
    return undefined;
  }

  async #refuse(message: string, isTold: boolean): Promise<Failed> {
    await this.#lastStep; // which may fail before
    const error = new Deno.errors.BadResource(message);
    return this.#failure ??= { error, isTold };
  }

  // Time, stop, end and close

  /**
   * Starts the time anew for what is waited for now. A number of milliseconds is the
   * `timeout` from now on.
   *
   * @throws {RangeError} If they are no number above 0.
   */
  renew(timeout: number = this.#timeout): void {
    checkTimeout(timeout);
    this.#timeout = timeout;
    this.#readTime.restart(timeout);
    this.#sendTime.restart(timeout);
  }

  /**
   * Lets the peer's loop of lines, or of `hasMore`, end before its next message. All
   * other reads go on. A shutdown of the server calls it.
   */
  stop(): void {
    this.#isStopping = true;
    this.#tellOfStop();
  }

  /** Whether it was stopped. */
  get isStopping(): boolean {
    return this.#isStopping;
  }

  /**
   * Closes at once. What is read and sent, now or later, rejects with the reason. Where
   * no call has, the close tells it. Does nothing after the close.
   *
   * To the peer it looks like any other end: a message must say itself where it ends,
   * by a line end or a length.
   */
  end(reason: unknown): void {
    if (this.#state === "closed") return;
    if (this.#state !== "lingering") {
      this.#isEnded = true;
      this.#failure = { error: reason, isTold: false };
    }
    this.#closeNow();
  }

  /** Aborted at the close, or before by an early end, with its reason. */
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.#state === "closed") this.#abortSignal();
    return this.#controller.signal;
  }

  /**
   * Closes without a loss; at once, if the peer has ended.
   *
   * - What is queued is sent, within `timeout`, and ten seconds at most.
   * - Then it half-closes, and drops what still comes, for a second at most, until the
   *   peer's end: a close with unread input is a reset, and can cost what was sent last.
   *
   * @throws {unknown} Why a send failed, or the reason of an early end, where no call
   * has rejected with it, and the peer's end was not read since.
   */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#closing ??= quiet(this.#close());
  }

  async #close(): Promise<void> {
    this.#readTime.stop(); // of a read that nobody awaits
    if (this.#state === "open") {
      this.#state = "sending the rest";
      const isDone = this.#input !== "open" && this.#steps === 0;
      if (!isDone) await this.#finish(new Wait(this));
      this.#closeNow();
    }
    const { error, isTold = true } = this.#failure ?? {};
    // What sends meet after a reset that a read has told is the same fault.
    const isKnown = typeof this.#input === "object" && this.#input.isTold;
    if (!isTold && !(isKnown && hasLeft(error))) throw error;
  }

  async #finish(time: Wait): Promise<void> {
    time.start(Math.min(this.#timeout, MOST_TIME_TO_SEND));
    await this.#lastStep;
    if (!this.#isEnded) this.#state = "lingering";
    time.start(LINGERING);
    // Where that fails, the peer is gone, and so the input ends.
    await this.connection.closeWrite().catch(nothing);
    while (this.#input === "open") {
      this.#advance(this.#filled.length);
      await (this.#filling ??= this.#fill());
    }
    time.stop();
  }

  #closeNow(): void {
    this.#state = "closed";
    this.connection[Symbol.dispose](); // not `close()`: it may be closed
    this.#abortSignal();
  }

  #abortSignal(): void {
    this.#controller?.abort(
      this.#isEnded
        ? this.#failure?.error
        : new DOMException("the peer is closed", "AbortError"),
    );
  }
}

/** Why a peer failed, and whether somebody has heard of it. */
interface Failed {
  readonly error: unknown;
  isTold: boolean;
}

type Step<A, B> = ((value: A) => B | PromiseLike<B>) | null | undefined;

/** What `send` gives. It ends no program, and notes who waits for it. */
class Sending implements Promise<void> {
  readonly [Symbol.toStringTag] = "Promise";
  readonly #sent: Promise<Failed | undefined>;

  constructor(sent: Promise<Failed | undefined>) {
    this.#sent = sent;
  }

  // `await` calls it, too.
  then<A = void, B = never>(
    onSent?: Step<void, A>,
    onFailure?: Step<unknown, B>,
  ): Promise<A | B> {
    return this.#sent.then((failed) => {
      if (!failed) return onSent ? onSent() : undefined as A;
      failed.isTold = true;
      if (onFailure) return onFailure(failed.error);
      throw failed.error;
    });
  }

  catch<B = never>(onFailure?: Step<unknown, B>): Promise<void | B> {
    return this.then(undefined, onFailure);
  }

  finally(step?: (() => void) | null): Promise<void> {
    return this.then().finally(step);
  }
}

/** The clock of one wait. When its time is up, the peer is ended. */
class Wait {
  readonly #peer: Peer<Deno.Conn>;
  #place = -1; // among the waits, where it is one
  #lastLook = Infinity; // the one after which the time is up

  constructor(peer: Peer<Deno.Conn>) {
    this.#peer = peer;
  }

  start(milliseconds: number): void {
    // One look more, as the first may come at once.
    this.#lastLook = looks + Math.ceil(milliseconds / LOOK) + 1;
    if (this.#place >= 0) return;
    this.#place = waits.push(this) - 1;
    if (waits.length === 1) startLooking();
  }

  restart(milliseconds: number): void {
    if (this.#place >= 0) this.start(milliseconds);
  }

  stop(): void {
    if (this.#place < 0) return;
    const last = waits.pop()!;
    if (last !== this) waits[last.#place = this.#place] = last;
    this.#place = -1;
    if (waits.length > 0) return;
    clearInterval(looking);
    looking = undefined;
  }

  look(): void {
    if (looks <= this.#lastLook) return;
    this.stop();
    this.#peer.end(new DOMException("time is up", "TimeoutError"));
  }
}

// Time is counted in looks. In a standstill (Ctrl-Z, a paused container, a handler
// that computes) there are none, so it moves all ends by as much, and what came
// meanwhile is read before the next one.
const LOOK = 50; // milliseconds
const waits: Wait[] = []; // No `Set`, either: see `#clients`.
let looks = 0;
let looking: ReturnType<typeof setInterval> | undefined; // while there are waits

function startLooking(): void {
  looking = setInterval(() => {
    looks++;
    for (const wait of [...waits]) wait.look(); // A copy: it may leave.
  }, LOOK);
  Deno.unrefTimer(looking as unknown as number); // It holds no program.
}

function nothing(): void {}

/** The parts as one. A `Blob` of them takes seconds, where they are many. */
function joined(parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let end = 0;
  for (const part of parts) {
    all.set(part, end);
    end += part.length;
  }
  return all;
}

/** A promise whose failure ends no program where nobody awaits it. */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.then(undefined, nothing);
  return promise;
}

/** The options, with defaults. */
function checked(options: PeerOptions) {
  const { timeout = DEFAULTS.timeout, limit = DEFAULTS.limit } = options;
  const { noDelay = true, signal } = options;
  checkTimeout(timeout);
  return { timeout, limit: checkedCount("limit", limit), noDelay, signal };
}

function checkTimeout(timeout: unknown): void {
  if (typeof timeout === "number" && timeout > 0) return;
  throw new RangeError(`timeout is no number above 0: ${timeout}`);
}

function checkedCount(name: "limit" | "maxClients", count: number): number {
  const isWhole = Number.isInteger(count) || count === Infinity;
  if (isWhole && count >= 1) return count;
  throw new RangeError(`${name} is no whole number from 1: ${count}`);
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

/**
 * The default of `onError`: shows an error on stderr, after the client's address. One
 * line is what can happen on any connection, such as a reset or the time that is up,
 * and the reason that was given for an early end. All else has its stack.
 *
 * ```ts
 * import { serve, showError } from "./server.ts";
 *
 * serve({
 *   handler: (client) => client.send("hello\n"),
 *   onError: (error, client) => {
 *     if (error instanceof Deno.errors.ConnectionReset) return;
 *     showError(error, client);
 *   },
 * });
 * ```
 */
export function showError(error: unknown, client: Peer<Deno.Conn>): void {
  if (unshown >= 1000) return; // Nobody reads stderr, and more would fill memory.
  const isShort = isOneOf(USUAL, error) ||
    Error.isError(error) && error === client.signal.reason;
  const { localAddr, remoteAddr } = client.connection;
  // Over Unix sockets, a client has no address of its own.
  const address = "path" in localAddr
    ? localAddr.path
    : format(remoteAddr as Deno.NetAddr);
  unshown++;
  Promise.try(() => report(isShort ? `${error}` : error, `${address} `))
    .catch(report).then(() => unshown--); // Its text may throw, too.
}

let unshown = 0; // errors that stderr has not taken yet

/** By class or code: what can happen on any connection, whatever its handler does. */
const USUAL = [
  ...ONE_IS_LOST,
  ...["BrokenPipe", "TimedOut", "NetworkUnreachable"],
  ...["EPIPE", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH"],
  ...["InvalidData", "UnexpectedEof"], // of a peer's reads, and of TLS
  ...["TimeoutError", "AbortError"], // the time that is up, the shutdown
];

// The command

const SCRIPT = "server.ts";
const FLAGS = {
  host: DEFAULTS.hostname,
  port: DEFAULTS.port,
  greeting: DEFAULTS.greeting,
  timeout: DEFAULTS.timeout / 1000, // seconds
  "max-clients": DEFAULTS.maxClients,
  once: false,
  quiet: false,
  help: false,
};
type Name = keyof typeof FLAGS;
const HELP = `Sends each TCP client a greeting and reads its reply.

usage: deno run --allow-net server.ts [flags]

  --host HOST        the address to listen on (${FLAGS.host})
  --port, -p PORT    the port to listen on; 0 picks a free one (${FLAGS.port})
  --greeting TEXT    what each client is sent (${FLAGS.greeting})
  --timeout SECONDS  to the end of a client's reply (${FLAGS.timeout})
  --max-clients N    clients served at once; more wait (${FLAGS["max-clients"]})
  --once             serve one client, then end (off)
  --quiet, -q        no line per client (off)
  --help, -h         show this help (off)`;

/** Runs the command. Gives 0 for success, 1 for failure, 2 for wrong flags. */
export async function main(args: string[]): Promise<number> {
  const out = new LineWriter();
  try {
    const flags = await readFlags(args);
    if (!flags.isOn("help")) return await run(flags, out);
    out.print(HELP);
    return await out.flush() ? 0 : 1;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    await report(`error: ${error.message}`);
    return error.code;
  }
}

/** Serves until a stop signal, or with `--once` one client. Gives the exit code. */
async function run(flags: Flags, out: LineWriter): Promise<number> {
  const options = {
    hostname: flags.text("host").replace(/^\[(.*)\]$/, "$1"), // as a URL has it
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
  const show = ({ connection }: Peer, outcome: string, text = "") => {
    if (quiet) return;
    out.print(`${format(connection.remoteAddr)} ${outcome}${shown(text)}`);
  };
  const handler = async (client: Peer) => {
    served++;
    show(client, "connected");
    if (once) server.shutdown(); // `finished` is awaited below.
    const reply = await greet(client, greeting);
    show(client, reply ? "replied: " : "left without a reply", reply);
    code = 0;
  };
  const onError = (error: unknown, client: Peer) => {
    const outcome = outcomeOf(error, client);
    show(client, outcome);
    if (outcome === "failed") report(error);
  };
  let server: Server;
  try {
    server = serve({ ...options, handler, onError });
  } catch (error) {
    throw new Failure(explain(error as Error, format(options)));
  }
  // Not earlier: where `Deno.listen` asks for the permission, a signal ends it.
  using _ = onStopSignal(() => {
    out.print(`Stopping: ${clients(server.clients)} to finish`);
    server.shutdown(); // `finished` is awaited below.
  });
  out.print(`Listening on ${format(server.addr)}`);
  await server.finished;
  out.print(`Served ${clients(served)}`);
  const isPrinted = await out.flush();
  // With `--once`, a lost line is a failure.
  return once && !isPrinted ? 1 : code;
}

/** What is printed of a client whose exchange ended with an error. */
function outcomeOf(error: unknown, { buffered }: Peer): string {
  if (isOneOf(["TimeoutError"], error)) {
    const text = shown(decoder.decode(buffered));
    return text ? `timed out; so far: ${text}` : "timed out";
  }
  if (isOneOf(["InvalidData"], error)) return "sent too long a reply";
  return isOneOf(USUAL, error) ? "reset the connection" : "failed";
}

function explain({ name, message }: Error, address: string): string {
  const known: Record<string, string> = {
    AddrInUse: `${address} is in use; choose another port with --port`,
    AddrNotAvailable:
      `${address} is not an address of this machine; choose another with --host`,
    PermissionDenied:
      `the system does not allow listening on ${address}; choose a port from 1024 with --port`,
    NotCapable:
      `no permission to listen on ${address}; run with --allow-net=${address}`,
  };
  return known[name] ?? `cannot listen on ${address}: ${message}`;
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
    await writeAll(Deno.stdout, lines).catch((error) =>
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

/** Writes all of the text, in UTF-8: one write may take only a part. */
async function writeAll(writer: Pick<Deno.Conn, "write">, text: string) {
  let rest = new TextEncoder().encode(text);
  while (rest.length > 0) rest = rest.subarray(await writer.write(rest));
}

/** Shows an error, which may quote a peer, without blocking. Never rejects. */
async function report(error: unknown, prefix = ""): Promise<void> {
  // An error may have code of its own for being shown, which may throw.
  const text = await Promise.try(Deno.inspect, error).catch(() => `${error}`)
    .catch(() => "an error that cannot be shown");
  const all = prefix + (typeof error === "string" ? error : text);
  // Indented, so that no line of a message looks like one of ours.
  const lines = all.split("\n").map(printable).join("\n  ");
  // Where that fails, there is no other place to say it.
  await writeAll(Deno.stderr, `${lines}\n`).catch(() => {});
}

class Failure extends Error {
  code = 1; // that the command ends with
}

type Flags = Awaited<ReturnType<typeof readFlags>>;

/** Reads the script's `FLAGS`. One whose default is `false` takes no value. */
async function readFlags(args: string[]) {
  // Here, so that a program that imports this script needs no JSR.
  // deno-lint-ignore no-import-prefix -- alone, the script has no deno.json
  const parser = import("jsr:@std/cli@^1.0.32/parse-args").catch(() => {
    const task = `in a clone, use: deno task run ${SCRIPT}`;
    throw new Failure(`@std/cli could not be had from JSR; ${task}`);
  });
  const { parseArgs } = await parser;
  const wrong = (text: string) =>
    Object.assign(new Failure(`${text}; see --help`), { code: 2 });
  // The parser would take `--no-host=x` for `--host=x`.
  const unexpected: unknown[] = args.filter((arg) => arg.startsWith("--no-"));
  const names = Object.keys(FLAGS) as Name[];
  const flags = parseArgs(args, {
    string: names, // the switches, too, or the parser drops a value that one has
    alias: { port: "p", quiet: "q", help: "h" },
    default: FLAGS,
    unknown: (arg: string) => (unexpected.push(arg), false),
  });
  const isSwitch = (name: Name) => FLAGS[name] === false;
  const valued = names.find((name) => isSwitch(name) && flags[name]);
  if (valued) throw wrong(`--${valued} takes no value`);
  const empty = names.find((name) => !isSwitch(name) && flags[name] === "");
  if (empty) throw wrong(`--${empty} needs a value: --${empty}=VALUE`);
  const [extra] = [...unexpected, ...flags._];
  if (extra !== undefined) throw wrong(`unexpected "${extra}"`);
  return {
    text: (name: Name) => `${flags[name]}`,
    isOn: (name: Name) => flags[name] === "",
    number(name: Name, kind: string, least: number, most: number) {
      const form = kind === "number" ? /^(\d+|\d*\.\d+)$/ : /^\d+$/;
      const value = form.test(this.text(name)) ? Number(this.text(name)) : NaN;
      if (value >= least && value <= most) return value;
      const range = `a ${kind} from ${least} to ${most}`;
      throw wrong(`--${name} must be ${range}, not "${this.text(name)}"`);
    },
  };
}

if (import.meta.main) Deno.exit(await main(Deno.args));
