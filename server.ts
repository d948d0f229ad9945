#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP server: it waits for clients, sends each one a greeting, closes its own
 * half of the connection, reads the client's reply to its end, and closes.
 *
 * As a command:
 *
 * ```sh
 * deno run --allow-net server.ts
 * ```
 *
 * As a library:
 *
 * ```ts
 * import { serve } from "./server.ts";
 *
 * await using server = serve({
 *   port: 0,
 *   onOutcome: ({ outcome, reply }) => console.log(outcome, reply),
 * });
 * console.log(server.addr.port);
 * ```
 *
 * @module
 */

// In full: a script that runs alone has no deno.json to look a name up in.
// deno-lint-ignore no-import-prefix
import { parseArgs } from "jsr:@std/cli@^1.0.32/parse-args";

/**
 * The exchange with one client, steps 3 to 6. Before it, `serve` listens (1) and
 * `acceptAll` accepts the client (2). Resolves to the reply.
 */
async function handle(
  client: Client,
  { greeting, handler, maxReplyBytes }: Settings,
  firstWrites: FirstWrites,
): Promise<string> {
  const { connection } = client;
  try {
    try {
      await greet(connection, greeting, firstWrites); // 3. Greet.
      // 4. Half-close. A close would shut the reply out, and without either the
      // client could not tell where the greeting ends.
      if (handler === undefined) await connection.closeWrite();
    } catch (error) {
      // A reset is reported once, to the first call that meets it.
      const isReset = error instanceof Deno.errors.ConnectionReset;
      if (isReset || isClose(error)) throw error;
      // Any other client may have replied and gone before it was greeted. Its
      // reply is still there to be read.
    }
    // 5. Read the reply to its end, or do what another handler does instead.
    if (handler !== undefined) return await handler(connection);
    return await receive(connection, maxReplyBytes, client);
  } finally {
    // 6. Close, on every path. `using` says the same, but costs a busy server 5 %
    // more CPU. Not `close()`, which throws where it is closed already.
    connection[Symbol.dispose]();
  }
}

async function greet(
  connection: Deno.TcpConn,
  greeting: Uint8Array<ArrayBuffer>,
  firstWrites: FirstWrites,
): Promise<void> {
  if (greeting.length === 0) return;
  let sent: number;
  // Only the first write counts: a client that then reads slowly must not keep
  // one of the few places.
  firstWrites.begin();
  try {
    sent = await connection.write(greeting);
  } finally {
    firstWrites.end();
  }
  // A write may take only a part of what it is given.
  if (sent < greeting.length) await send(connection, greeting.subarray(sent));
}

/**
 * How an exchange with a client ended:
 *
 * - `"replied"`: the reply was read to its end;
 * - `"left"`: the client ended without a byte of a reply;
 * - `"timed-out"`: the reply had not ended when the time was up;
 * - `"aborted"`: the reply had not ended when the server was aborted;
 * - `"reset"`: the connection broke before the reply had ended;
 * - `"too-long"`: the reply was longer than `maxReplyBytes`. None of it is
 *   kept;
 * - `"failed"`: the option `handler` threw an error that is not one of the
 *   connection.
 */
export type Outcome =
  | "replied"
  | "left"
  | "timed-out"
  | "aborted"
  | "reset"
  | "too-long"
  | "failed";

/** An exchange that is over. */
export interface Exchange {
  /** The client's address. */
  client: Deno.NetAddr;
  /** How it ended. */
  outcome: Outcome;
  /**
   * The reply as it came, with U+FFFD for bytes that are not UTF-8, or what the
   * option `handler` resolved to. Empty unless the outcome is `"replied"`.
   */
  reply: string;
}

/**
 * Options of {@linkcode serve}. An error in a callback, thrown or rejected
 * with, goes to stderr, and the server goes on. `finished` waits for the
 * promises that callbacks return, so neither a callback nor the `handler` may
 * await `finished` or `shutdown()`; a callback may return either as it is.
 */
export interface ServeOptions {
  /**
   * The address to listen on, or a name of it. Only this machine can reach the
   * default.
   *
   * @default {"127.0.0.1"}
   */
  hostname?: string;
  /**
   * The port to listen on; 0 picks a free one.
   *
   * @default {8888}
   */
  port?: number;
  /**
   * What each client is sent, in UTF-8. Nothing is sent if it is empty.
   *
   * @default {"你好,客戶端,我是服務器"}
   */
  greeting?: string;
  /**
   * What follows the greeting on each connection. What it resolves to is the
   * reply; an empty one makes the outcome `"left"`. The server closes the
   * connection when the handler has settled, and earlier when the time is up or
   * the server is aborted; reads and writes then reject.
   *
   * An error of the connection that the handler rejects with makes the outcome
   * `"reset"`. Any other goes to stderr, and the outcome is `"failed"`.
   *
   * Until the handler has settled, the client counts for `maxClients` and
   * `finished` stays pending, even if the connection is closed. Read with
   * `connection.read()`: at its end, `connection.readable` closes the connection
   * for writes, too.
   *
   * The default closes the writing half and reads the reply to its end.
   *
   * @example A server that tells the time
   * ```ts
   * import { serve } from "./server.ts";
   *
   * await using server = serve({
   *   port: 0,
   *   greeting: "",
   *   handler: async (connection) => {
   *     const time = new Date().toISOString();
   *     await connection.write(new TextEncoder().encode(`${time}\n`));
   *     return time;
   *   },
   * });
   * ```
   */
  handler?: (connection: Deno.TcpConn) => Promise<string>;
  /**
   * Milliseconds from a client's being accepted to the end of its reply, above 0
   * and at most 2147483647; or `Infinity`, for no deadline. What a client waits
   * in the kernel's queue before that does not count.
   *
   * @default {10000}
   */
  timeout?: number;
  /**
   * Clients served at once, from 1. Further ones wait in the kernel's queue.
   *
   * @default {1024}
   */
  maxClients?: number;
  /**
   * The longest reply that is taken, in bytes, from 1 to 536870888. A `handler`
   * has limits of its own.
   *
   * @default {65536}
   */
  maxReplyBytes?: number;
  /**
   * Aborting it closes the listener and all connections at once. Exchanges under
   * way end as `"aborted"`.
   */
  signal?: AbortSignal;
  /** Called once, before `serve` returns, with the server's address. */
  onListen?: (address: Deno.NetAddr) => void | Promise<void>;
  /** Called with the address of each client that is accepted. */
  onConnect?: (client: Deno.NetAddr) => void | Promise<void>;
  /** Called once for each accepted client, after its connection is closed. */
  onOutcome?: (exchange: Exchange) => void | Promise<void>;
  /**
   * Called when no client can be accepted for want of file descriptors or memory.
   * The server keeps trying. Not called again until a minute has passed without
   * such an error.
   */
  onAcceptError?: (error: Error) => void | Promise<void>;
}

/** A running server. `await using` shuts it down at the end of the block. */
export interface Server extends AsyncDisposable {
  /** The address that the server listens on. */
  readonly addr: Deno.NetAddr;
  /**
   * Resolves when the server has ended, all its connections are closed and all
   * callbacks have settled. Never rejects.
   */
  readonly finished: Promise<void>;
  /**
   * Takes no new clients and lets the exchanges under way finish. Resolves when
   * `finished` does.
   */
  shutdown(): Promise<void>;
}

/**
 * Starts a server and returns at once.
 *
 * @example Serve one client
 * ```ts
 * import { serve } from "./server.ts";
 *
 * const server = serve({
 *   port: 9000,
 *   greeting: "Hello, client",
 *   onConnect: () => server.shutdown(),
 *   onOutcome: ({ client, reply }) => console.log(client.port, reply),
 * });
 * await server.finished;
 * ```
 *
 * @param options Where to listen, what to send, the limits, and what to call.
 * @returns The running server.
 * @throws {RangeError} If a number is out of its range.
 * @throws {TypeError} If `hostname` or `greeting` is not a string, or `hostname`
 * is empty.
 * @throws {Error} What `Deno.listen` throws, such as `Deno.errors.AddrInUse`,
 * and the reason of a `signal` that is aborted already.
 */
export function serve(options: ServeOptions = {}): Server {
  const settings = settingsOf(options);
  const { hostname, port, signal, onListen } = settings;
  signal?.throwIfAborted();

  // 1. Listen. The kernel keeps clients in the backlog until they are accepted.
  // Deno's default of 511 overflows in a burst, which costs each client that
  // did not fit a second.
  const listener = Deno.listen({ hostname, port, tcpBacklog: 4096 });
  const change = new Change();
  const callbacks = new Callbacks(change, () => finished);
  const clients = new Clients(settings, callbacks, change);

  async function run(): Promise<void> {
    await acceptAll(listener, clients, change, (error) => {
      callbacks.notify(settings.onAcceptError, error);
    });
    await clients.allGone();
    signal?.removeEventListener("abort", abort);
  }
  function shutdown(): Promise<void> {
    clients.accepting = false;
    // Makes a pending accept reject. A loop that waits for room instead needs no
    // waking: the client that makes room wakes it. Not `close()`, which may be
    // called only once.
    listener[Symbol.dispose]();
    return finished;
  }
  function abort(): void {
    shutdown();
    clients.abort();
  }

  signal?.addEventListener("abort", abort);
  const finished = run();
  callbacks.notify(onListen, listener.addr);
  return {
    addr: listener.addr,
    finished,
    shutdown,
    [Symbol.asyncDispose]: shutdown,
  };
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  greeting: "你好,客戶端,我是服務器",
  timeout: 10_000, // milliseconds
  maxClients: 1024,
};

/** The options, checked, with the default for each that is left out. */
function settingsOf(options: ServeOptions) {
  const {
    hostname = DEFAULTS.hostname,
    port = DEFAULTS.port,
    greeting = DEFAULTS.greeting,
    timeout = DEFAULTS.timeout,
    maxClients = DEFAULTS.maxClients,
    maxReplyBytes = MAX_TEXT_BYTES,
    ...others
  } = options;
  checkText("hostname", hostname, 1);
  checkWhole("port", port, 0, 65_535);
  checkText("greeting", greeting, 0);
  if (timeout !== Infinity) checkTime("timeout", timeout, "above 0");
  checkWhole("maxClients", maxClients, 1);
  checkWhole("maxReplyBytes", maxReplyBytes, 1, MAX_STRING_BYTES);
  return {
    hostname,
    port,
    greeting: encoder.encode(greeting),
    timeout,
    maxClients,
    maxReplyBytes,
    ...others,
  };
}

type Settings = ReturnType<typeof settingsOf>;

/** Accepts clients, one after the other, until the server is stopped. */
async function acceptAll(
  listener: Deno.TcpListener,
  clients: Clients,
  change: Change,
  onShortage: (error: Error) => void,
): Promise<void> {
  let lastShortage = -Infinity;
  let lost = 0;
  while (clients.accepting) {
    // No room: further clients wait in the kernel's queue. None is refused.
    if (clients.full) {
      await change.next();
      continue;
    }
    let connection: Deno.TcpConn;
    try {
      connection = await listener.accept(); // 2. Accept.
    } catch (error) {
      // Closing the listener makes a pending accept reject, too: the loop ends.
      if (isShortage(error)) {
        // It is reported once a minute. To try again at once would spin: room
        // is made by a client that leaves, or elsewhere as time passes.
        const now = performance.now();
        if (now - lastShortage > 60_000) onShortage(error as Error);
        lastShortage = now;
        const pause = setTimeout(() => change.notify(), 100);
        await change.next();
        clearTimeout(pause);
      } else if (++lost % 100 === 0) {
        // Any other error concerns one client, which reset before it was
        // accepted: go on at once. After a hundred in a row pause, in case the
        // error will stay and the loop would spin.
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      continue;
    }
    lost = 0;
    // Not awaited, or one client would hold up the next. Never rejects.
    if (clients.accepting) clients.serve(connection);
    else connection.close(); // The server was stopped in the meantime.
  }
}

/** Whether the system had nothing left to accept a client with. */
function isShortage(error: unknown): boolean {
  const { code } = error as { code?: string };
  return code === "EMFILE" || code === "ENFILE" || code === "ENOBUFS" ||
    code === "ENOMEM";
}

/** Serves clients, at most so many at once, and knows when all have gone. */
class Clients {
  accepting = true;
  readonly #list = new ClientList();
  readonly #settings: Settings;
  readonly #callbacks: Callbacks;
  readonly #change: Change;
  readonly #deadlines: Deadlines;
  readonly #firstWrites: FirstWrites;

  constructor(settings: Settings, callbacks: Callbacks, change: Change) {
    this.#settings = settings;
    this.#callbacks = callbacks;
    this.#change = change;
    this.#deadlines = new Deadlines(settings.timeout, this.#list);
    this.#firstWrites = new FirstWrites(change);
  }

  get full(): boolean {
    return this.#list.size >= this.#settings.maxClients ||
      this.#firstWrites.full;
  }

  /** Serves a client, from its acceptance to its outcome. Never rejects. */
  async serve(connection: Deno.TcpConn): Promise<void> {
    const { onConnect, onOutcome, handler } = this.#settings;
    const address = connection.remoteAddr;
    const client = this.#deadlines.add(connection);
    this.#callbacks.notify(onConnect, address);
    let outcome: Outcome;
    let reply = "";
    try {
      reply = await handle(client, this.#settings, this.#firstWrites);
      outcome = reply === "" ? "left" : "replied";
    } catch (error) {
      outcome = outcomeOf(error, handler);
      if (outcome === "failed") report(error);
    }
    // If the server has closed the connection, that is the outcome, whatever
    // the handler made of it.
    if (client.closedAs !== undefined) [outcome, reply] = [client.closedAs, ""];
    this.#list.delete(client);
    this.#callbacks.notify(onOutcome, { client: address, outcome, reply });
    this.#change.notify();
  }

  abort(): void {
    this.#deadlines.close(Infinity, "aborted");
  }

  async allGone(): Promise<void> {
    while (this.#list.size > 0 || this.#callbacks.pending > 0) {
      await this.#change.next();
    }
    await this.#deadlines.stop();
  }
}

/**
 * Wakes the one that waits when a client, a first write or a callback is done.
 * Only one may wait at a time: here the accept loop, and after it the end.
 */
class Change {
  #resolve = () => {};

  next(): Promise<void> {
    return new Promise((resolve) => this.#resolve = resolve);
  }

  notify(): void {
    this.#resolve();
  }
}

/** A client being served, in a list in the order of arrival. */
interface Client {
  readonly connection: Deno.TcpConn;
  /** When its time is up. */
  readonly due: number;
  /** How often it was read from. */
  reads: number;
  /** The outcome, once the server has closed the connection. */
  closedAs?: Outcome;
  previous: Client | undefined;
  next: Client | undefined;
}

/**
 * The clients being served, the first first. They are linked by hand: a Map or a
 * Set, to which each is added and taken from, costs 5 % more CPU per exchange.
 */
class ClientList {
  size = 0;
  first: Client | undefined;
  #last: Client | undefined;

  add(connection: Deno.TcpConn, due: number): Client {
    const previous = this.#last;
    const client = { connection, due, reads: 0, previous, next: undefined };
    if (previous === undefined) this.first = client;
    else previous.next = client;
    this.#last = client;
    this.size++;
    return client;
  }

  delete(client: Client): void {
    const { previous, next } = client;
    if (previous === undefined) this.first = next;
    else previous.next = next;
    if (next === undefined) this.#last = previous;
    else next.previous = previous;
    // Or a client that the garbage collector still takes for alive would keep
    // all that came after it alive, too.
    client.previous = client.next = undefined;
    this.size--;
  }

  /** How often those overdue were read from, or undefined if there are none. */
  overdueReads(): number | undefined {
    const now = performance.now();
    let reads: number | undefined;
    let client = this.first;
    for (; client !== undefined && client.due <= now; client = client.next) {
      reads = (reads ?? 0) + client.reads;
    }
    return reads;
  }
}

/**
 * The time that each client has left. As all have the same time, the first that
 * came is the first due, and one timer serves all.
 */
class Deadlines {
  readonly #timeout: number;
  readonly #clients: ClientList;
  /** Set while a client is to be closed, or is being closed. */
  #timer: ReturnType<typeof setTimeout> | undefined;
  #closing: Promise<void> | undefined;

  constructor(timeout: number, clients: ClientList) {
    this.#timeout = timeout;
    this.#clients = clients;
  }

  add(connection: Deno.TcpConn): Client {
    const due = performance.now() + this.#timeout;
    if (this.#timer === undefined) this.#schedule(due, this.#timeout);
    return this.#clients.add(connection, due);
  }

  /** Closes those due by then, and gives them the outcome. */
  close(until: number, outcome: Outcome): void {
    let client = this.#clients.first;
    for (; client !== undefined && client.due <= until; client = client.next) {
      client.closedAs ??= outcome;
      // Makes the pending read or write reject, which ends the exchange.
      client.connection[Symbol.dispose]();
    }
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (client === undefined) return;
    this.#schedule(client.due, client.due - performance.now());
  }

  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#closing;
  }

  #schedule(due: number, left: number): void {
    if (due === Infinity) return; // A timer would take it for 0.
    const timeIsUp = () => this.#closing = this.#closeOverdue(due);
    this.#timer = setTimeout(timeIsUp, Math.max(left, 0));
  }

  async #closeOverdue(due: number): Promise<void> {
    // The timer is late: the process stood still, or a callback kept it busy.
    // Replies may have arrived meanwhile, and are read before the time is up.
    if (performance.now() - due > 20) {
      await untilIdle(50, () => this.#clients.overdueReads());
    }
    this.close(performance.now(), "timed-out");
  }
}

/**
 * The limit on clients that wait for the first bytes of their greeting. Deno
 * starves the first write on a fresh connection while it accepts others:
 * without the limit, some of thousands of clients would wait for a second.
 */
class FirstWrites {
  readonly #change: Change;
  #pending = 0;

  constructor(change: Change) {
    this.#change = change;
  }

  get full(): boolean {
    return this.#pending >= 32;
  }

  begin(): void {
    this.#pending++;
  }

  end(): void {
    this.#pending--;
    this.#change.notify();
  }
}

/** Calls back, and counts the callbacks that are still at work. */
class Callbacks {
  readonly #change: Change;
  readonly #finished: () => Promise<void>;
  #pending = 0;

  constructor(change: Change, finished: () => Promise<void>) {
    this.#change = change;
    this.#finished = finished;
  }

  get pending(): number {
    return this.#pending;
  }

  /** What a callback throws or rejects with is shown, no more. */
  notify<T>(
    callback: ((event: T) => void | Promise<void>) | undefined,
    event: T,
  ): void {
    try {
      const promise = callback?.(event);
      // Most return nothing. And one that returns `finished` waits for the end,
      // so the end can't wait for it.
      if (promise === undefined || promise === this.#finished()) return;
      this.#pending++;
      Promise.resolve(promise).catch(report).then(() => {
        this.#pending--;
        this.#change.notify();
      });
    } catch (error) {
      report(error);
    }
  }
}

/** What an error that ends an exchange makes of it. */
function outcomeOf(error: unknown, handler: unknown): Outcome {
  const {
    ConnectionReset,
    ConnectionAborted,
    BrokenPipe,
    NotConnected,
    TimedOut,
    InvalidData,
  } = Deno.errors;
  if (
    error instanceof ConnectionReset ||
    error instanceof ConnectionAborted ||
    error instanceof BrokenPipe ||
    error instanceof NotConnected ||
    error instanceof TimedOut ||
    isClose(error)
  ) return "reset";
  const isTooLong = handler === undefined && error instanceof InvalidData;
  return isTooLong ? "too-long" : "failed";
}

/** Whether a call rejected because this side has closed the connection. */
function isClose(error: unknown): boolean {
  return error instanceof Deno.errors.BadResource ||
    error instanceof Deno.errors.Interrupted;
}

// The command

const HELP = `Sends each TCP client a greeting and reads its reply.

usage: deno run --allow-net server.ts [flags]

  --host HOST        the address to listen on (${DEFAULTS.hostname})
  --port, -p PORT    the port to listen on; 0 picks a free one (${DEFAULTS.port})
  --greeting TEXT    what each client is sent (${DEFAULTS.greeting})
  --timeout SECONDS  from accepting a client to the end of its reply (${
  DEFAULTS.timeout / 1000
})
  --max-clients N    clients served at once; further ones wait (${DEFAULTS.maxClients})
  --once             serve one client, then end (off)
  --talk             serve one client, and go on line by line from stdin (off)
  --quiet, -q        no line per client (off)
  --help, -h         show this help (off)

example: deno run --allow-net server.ts --port 9000 --greeting "Hello, client"`;

/** What is printed behind a client's address; the reply follows the first. */
const OUTCOMES: Record<Outcome, string> = {
  "replied": "replied: ",
  "left": "left without a reply",
  "timed-out": "timed out",
  "aborted": "cut off",
  "reset": "reset the connection",
  "too-long": "sent too long a reply",
  "failed": "failed",
};

/**
 * Runs the command: prints what happens, and ends after one
 * client with `--once`, otherwise on a stop signal.
 *
 * @example Serve one client on another port
 * ```ts
 * import { main } from "./server.ts";
 *
 * const code = await main(["--port", "9000", "--once"]);
 * ```
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 success, 1 failure, 2 wrong command line, 130 ended
 * by a second stop signal.
 */
export async function main(args: string[]): Promise<number> {
  const out = new LineWriter();
  const flags = await commandLine(args, parse, HELP, out);
  return typeof flags === "number" ? flags : await run(flags, out);
}

async function run(flags: Flags, out: LineWriter): Promise<number> {
  const { once, talk: isTalk, quiet, ...options } = flags;
  const isOnce = once || isTalk;
  let code = 0;
  let served = 0;
  let active = 0;
  let signals = 0;
  let over = false;
  let server: Server;
  const stop = new AbortController();
  const hangUp = new AbortController();
  const isBare = isTalk && quiet; // after `Listening`, the client's lines alone
  // Neither a line nor a shutdown is awaited where it is asked for: the reader of
  // the lines must not hold up a client, and the end is awaited below.
  //
  // From before the server listens, or a signal that comes right after the line
  // that says so would end the program, until the lines are out.
  using _ = onStopSignal(() => {
    if (++signals > 1 || over) return stop.abort();
    if (!isBare) out.write(`Stopping: ${count(active)} to finish`);
    hangUp.abort();
    server.shutdown();
  });
  try {
    server = serve({
      ...options,
      ...isTalk ? talkOptions(flags, hangUp, stop.signal, out) : {},
      signal: stop.signal,
      onListen: (address) => void out.write(`Listening on ${format(address)}`),
      onConnect: (client) => {
        served++;
        active++;
        if (!quiet) out.write(`${format(client)} connected`);
        return isOnce ? server.shutdown() : undefined;
      },
      onOutcome: ({ client, outcome, reply }) => {
        active--;
        const isGood = outcome === "replied" || outcome === "left";
        if (isOnce && !isGood) code = 1;
        if (quiet || isTalk && isGood) return; // a talk has said that it ended
        out.write(`${format(client)} ${OUTCOMES[outcome]}${printable(reply)}`);
      },
      onAcceptError: ({ message }) =>
        fail(`no client can be accepted for now, still trying: ${message}`),
    });
  } catch (error) {
    fail(explain(error as Error, format(options)));
    return 1;
  }
  await server.finished;
  over = true;
  if (!isBare) out.write(`Served ${count(served)}`);
  await flush(out, stop.signal);
  if (stop.signal.aborted) return 130;
  if (isTalk && printed(out) !== 0) return 1;
  return isOnce && served === 0 ? 1 : code;
}

/** Waits until the lines are out. None that nobody takes delays the end. */
async function flush(out: LineWriter, stop: AbortSignal): Promise<void> {
  const progress = () => stop.aborted ? undefined : out.progress;
  await untilIdle(1000, progress, Infinity);
  // After a second signal, only those that are taken at once.
  if (stop.aborted) await untilIdle(20, () => out.progress, 50);
}

/** What makes the exchange a talk, in which a message ends with its line. */
function talkOptions(
  { greeting, quiet }: Flags,
  hangUp: AbortController,
  stop: AbortSignal,
  out: LineWriter,
): ServeOptions {
  return {
    greeting: `${greeting}\n`,
    timeout: Infinity,
    handler: async (connection) => {
      const address = format(connection.remoteAddr);
      await talk(connection, new LineReader(connection), {
        show: (line) =>
          new Promise((resolve) => {
            // A reader who stalls must not hold up the second signal.
            stop.onabort = () => resolve(false);
            out.write(`${quiet ? "" : `${address}: `}${printable(line)}`)
              .then(() => resolve(out.failure === undefined));
          }),
        onEnded: () => {
          if (!quiet) out.write(`${address} ended`);
        },
        hangUp,
      });
      return "";
    },
  };
}

/** Calls back at each stop signal, until it is disposed of. */
function onStopSignal(callback: () => void): Disposable {
  // Windows has no SIGTERM to listen for.
  const signals: Deno.Signal[] = Deno.build.os === "windows"
    ? ["SIGINT"]
    : ["SIGINT", "SIGTERM"];
  for (const signal of signals) Deno.addSignalListener(signal, callback);
  return {
    [Symbol.dispose]() {
      for (const signal of signals) Deno.removeSignalListener(signal, callback);
    },
  };
}

/** Reads the flags, as {@linkcode commandLine} wants it. */
function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    greeting: DEFAULTS.greeting,
    timeout: `${DEFAULTS.timeout / 1000}`,
    "max-clients": `${DEFAULTS.maxClients}`,
  }, ["once", "talk", "quiet"]);
  if (flags === undefined) return undefined;
  const { host: hostname, greeting, once, talk, quiet } = flags;
  const odd = flags.given.find((name) => name in NOT_WITH_TALK);
  if (talk && odd !== undefined) {
    throw new TypeError(
      `--talk ${NOT_WITH_TALK[odd]}, so it takes no --${odd}`,
    );
  }
  const port = wholeNumber(flags.port);
  const timeout = milliseconds(flags.timeout);
  const maxClients = wholeNumber(flags["max-clients"]);
  checkWhole("--port", port, 0, 65_535, flags.port);
  checkLength("--greeting", greeting);
  checkTime("--timeout", timeout, "above 0", flags.timeout);
  checkWhole("--max-clients", maxClients, 1, undefined, flags["max-clients"]);
  return { hostname, port, greeting, timeout, maxClients, once, talk, quiet };
}

const NOT_WITH_TALK: Record<string, string> = {
  "max-clients": "serves one client",
  timeout: "has no deadline",
};

type Flags = NonNullable<ReturnType<typeof parse>>;

/** What went wrong when listening, in a sentence for a person. */
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

function count(clients: number): string {
  return clients === 1 ? "1 client" : `${clients} clients`;
}

// From here to the last line, server.ts and client.ts are the same to the
// letter: each runs alone, so neither can import what both need.

/** The longest text, in bytes, that either command sends or takes. */
const MAX_TEXT_BYTES = 64 * 1024;

/** The longest string of V8, in characters: as many bytes may make as many. */
const MAX_STRING_BYTES = 2 ** 29 - 24;

const encoder = new TextEncoder();

// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * Reads to the end of what the peer sends. One read is not one message. Counts
 * the reads, for a deadline that comes late.
 */
async function receive(
  connection: Deno.TcpConn,
  limit: number,
  counter: { reads: number },
): Promise<string> {
  // Small at first, as each silent peer holds it.
  let buffer = new Uint8Array(128);
  let length = 0;
  for (;;) {
    const count = await connection.read(buffer.subarray(length));
    counter.reads++;
    // Decoded as a whole, as a character may be split over two reads.
    if (count === null) return decoder.decode(buffer.subarray(0, length));
    length += count;
    if (length > limit) throw new Deno.errors.InvalidData("too long");
    if (length === buffer.length) {
      buffer = new Uint8Array(buffer.buffer.transfer(2 * length));
    }
  }
}

/** Sends all of it. A write may take only a part of what it is given. */
async function send(
  connection: Deno.TcpConn,
  bytes: Uint8Array,
): Promise<void> {
  let sent = 0;
  while (sent < bytes.length) {
    sent += await connection.write(bytes.subarray(sent));
  }
}

/**
 * The talk on a connection: both directions at once, each ended by its own side.
 * Resolves when both have ended.
 */
async function talk(
  connection: Deno.TcpConn,
  lines: LineReader,
  { show, onEnded, hangUp }: {
    /**
     * Shows a line of the peer. Resolves when there is room for more, to whether
     * lines can still be shown.
     */
    show: (line: string) => Promise<boolean>;
    /** Called when the peer has ended. */
    onEnded: () => void;
    /** Makes this side end. */
    hangUp: AbortController;
  },
): Promise<void> {
  let failure: unknown;
  const sending = sendInput(connection, hangUp.signal).catch((error) => {
    // It counts below, when all that has come is shown.
    failure = error;
  });
  for (;;) {
    const some = await lines.read();
    if (some === null) break;
    // A peer that floods is read as fast as its lines can be written, and no
    // more once they can't.
    if (await some.map(show).at(-1) === false) return;
  }
  if (failure !== undefined) throw failure;
  onEnded();
  // One who types ends with the peer. What is piped in is sent to its end.
  if (Deno.stdin.isTerminal()) hangUp.abort();
  await sending;
  if (failure !== undefined) throw failure;
}

/** Sends what comes on stdin as it comes, to its end, and half-closes. */
async function sendInput(
  connection: Deno.TcpConn,
  hangUp: AbortSignal,
): Promise<void> {
  const buffer = new Uint8Array(16 * 1024);
  let last = LINE_END;
  for (;;) {
    const count = await readInput(buffer, hangUp);
    if (count === null) break;
    // A peer that does not read holds this up, and stdin with it.
    await send(connection, buffer.subarray(0, count));
    last = buffer[count - 1] ?? last;
  }
  if (last !== LINE_END) await send(connection, Uint8Array.of(LINE_END));
  await connection.closeWrite();
}

/** Gives null at the end of stdin, where it can't be read, and to hang up. */
function readInput(
  buffer: Uint8Array,
  hangUp: AbortSignal,
): Promise<number | null> {
  return new Promise((resolve) => {
    // Nothing can take a read of stdin back. It is left to itself.
    hangUp.onabort = () => resolve(null);
    if (hangUp.aborted) return resolve(null);
    Deno.stdin.read(buffer).then(resolve, () => resolve(null));
  });
}

const LINE_END = 0x0a; // \n
const CARRIAGE_RETURN = 0x0d; // \r

/** Reads a peer's lines. A longer one than 64 KiB comes in pieces. */
class LineReader {
  /** Whether the last line given is a piece, with more of it to come. */
  isCut = false;
  readonly #connection: Deno.TcpConn;
  // The beginning of a line, with room for the line end of telnet.
  readonly #buffer = new Uint8Array(MAX_TEXT_BYTES + 2);
  #length = 0;

  constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  /** The lines that one read completes, maybe none, or null at the end. */
  async read(): Promise<string[] | null> {
    const begun = this.#length;
    // No more at once than lines that a writer can store.
    const free = this.#buffer.subarray(begun, begun + 8 * 1024);
    const count = await this.#connection.read(free);
    if (count === null) {
      this.#length = 0;
      return begun === 0
        ? null
        : [decoder.decode(this.#buffer.subarray(0, begun))];
    }
    const bytes = this.#buffer.subarray(0, begun + count);
    const lines: string[] = [];
    let start = 0;
    let end = bytes.indexOf(LINE_END, begun);
    for (; end >= 0; end = bytes.indexOf(LINE_END, start)) {
      const hasReturn = end > start && bytes[end - 1] === CARRIAGE_RETURN;
      lines.push(
        decoder.decode(bytes.subarray(start, hasReturn ? end - 1 : end)),
      );
      start = end + 1;
    }
    this.isCut = isTooLong(bytes.subarray(start));
    if (this.isCut) {
      end = start + MAX_TEXT_BYTES;
      // Not within a character: its first byte is at most three before.
      for (let i = 0; i < 3 && isWithinCharacter(bytes[end]!); i++) end--;
      lines.push(decoder.decode(bytes.subarray(start, end)));
      start = end;
    }
    this.#buffer.copyWithin(0, start, bytes.length);
    this.#length = bytes.length - start;
    return lines;
  }
}

/** Whether a line is too long, which a carriage return at its end is not. */
function isTooLong(line: Uint8Array): boolean {
  const allowed = line.at(-1) === CARRIAGE_RETURN ? 1 : 0;
  return line.length > MAX_TEXT_BYTES + allowed;
}

/** Whether it is not the first byte of a character in UTF-8. */
function isWithinCharacter(byte: number): boolean {
  return (byte & 0b1100_0000) === 0b1000_0000;
}

/**
 * Resolves after so many milliseconds without progress, or after `atMost` in
 * all, or when progress is undefined. A process may stand still (Ctrl-Z, a paused
 * container), and its timers then run before its pending reads: so it is turns
 * of the event loop that count, of which it loses one.
 */
async function untilIdle(
  milliseconds: number,
  progress: () => number | undefined,
  atMost = 1000,
): Promise<void> {
  const turn = 5;
  let last = progress();
  let idle = 0;
  for (let all = 0; idle < milliseconds && all < atMost; all += turn) {
    if (last === undefined) return;
    await new Promise((resolve) => setTimeout(resolve, turn));
    const now = progress();
    idle = now === last ? idle + turn : 0;
    last = now;
  }
}

// The checks. `given` is the number as it stood on the command line.

function checkText(name: string, text: string, leastLength: 0 | 1): void {
  if (typeof text !== "string" || text.length < leastLength) {
    const demand = leastLength === 0 ? "" : " that is not empty";
    throw new TypeError(`${name} must be a string${demand}`);
  }
}

/** For the command line: what the other side's command would not take. */
function checkLength(name: string, text: string): void {
  const { length } = encoder.encode(text);
  if (length <= MAX_TEXT_BYTES) return;
  throw new RangeError(
    `${name} must be at most ${MAX_TEXT_BYTES} bytes, not ${length}`,
  );
}

function checkWhole(
  name: string,
  value: number,
  least: number,
  most = Number.MAX_SAFE_INTEGER,
  given?: string,
): void {
  if (Number.isInteger(value) && value >= least && value <= most) return;
  const range = most === Number.MAX_SAFE_INTEGER
    ? `from ${least}`
    : `from ${least} to ${most}`;
  throw new RangeError(
    `${name} must be a whole number ${range}, not ${shown(value, given)}`,
  );
}

function checkTime(
  name: string,
  time: number,
  least: "above 0" | "from 0",
  given?: string,
): void {
  const enough = least === "from 0" ? time >= 0 : time > 0;
  // A longer timer would fire at once.
  if (Number.isFinite(time) && enough && time <= 2_147_483_647) return;
  const range = given === undefined
    ? `of milliseconds ${least}, at most 2147483647`
    : `of seconds ${least}, at most 2147483`;
  throw new RangeError(
    `${name} must be a number ${range}, not ${shown(time, given)}`,
  );
}

function shown(value: unknown, given: string | undefined): string {
  return given === undefined ? `${value}` : `"${given}"`;
}

/**
 * Gives what `parse` makes of the command line. If that is nothing, or throws,
 * prints the help, or what is wrong, and gives the exit code.
 */
async function commandLine<T>(
  args: string[],
  parse: (args: string[]) => T | undefined,
  help: string,
  out: LineWriter,
): Promise<T | number> {
  try {
    const flags = parse(args);
    if (flags !== undefined) return flags;
  } catch (error) {
    fail(`${(error as Error).message}; see --help`);
    return 2;
  }
  await out.write(help);
  return 0;
}

const ALIASES: Record<string, string> = { port: "p", quiet: "q", help: "h" };

type ParsedFlags<Valued extends string, Switch extends string> =
  & Record<Valued, string>
  & Record<Switch, boolean>
  /** Those with a value that stand on the command line. */
  & { given: string[] };

/**
 * Reads the flags: those that take a value, with their defaults, and those that
 * take none. Returns undefined if help is wanted.
 */
function parseFlags<Valued extends string, Switch extends string>(
  args: string[],
  defaults: Record<Valued, string>,
  switches: Switch[],
): ParsedFlags<Valued, Switch> | undefined {
  const valued = Object.keys(defaults);
  const all = [...switches, "help"];
  const odd: string[] = [];
  const stray: string[] = [];
  const end = args.includes("--") ? args.indexOf("--") : args.length;
  // Switches with a value, as `parseArgs` takes any but "false" for on.
  const plain = args.filter((arg, i) => {
    const name = i < end && switchWithValue(arg, args[i + 1], all);
    if (name) odd.push(name);
    return !name;
  });
  const flags = parseArgs(plain, {
    string: valued,
    boolean: all,
    alias: ALIASES,
    "--": true,
    unknown: (arg) => {
      stray.push(arg);
      return false;
    },
  });
  // As in `-q9`, and `-qp9000`, which it takes for -q with a value, too.
  odd.push(...all.filter((name) => typeof flags[name] !== "boolean"));
  if (flags.help === true) return undefined;
  if (odd.length > 0) throw new TypeError(`--${odd[0]} takes no value`);
  const given = valued.filter((name) => flags[name] !== undefined);
  for (const name of given) {
    if (flags[name] !== "") continue;
    throw new TypeError(
      `--${name} needs a value; write --${name}=VALUE if it begins with "-"`,
    );
  }
  const [first] = [...stray, ...flags["--"]];
  if (first !== undefined) throw new TypeError(`unexpected "${first}"`);
  return { ...defaults, ...flags, given } as unknown as ParsedFlags<
    Valued,
    Switch
  >;
}

/** The switch that is given a value, as in `--quiet=no` and `-q false`. */
function switchWithValue(
  arg: string,
  next: string | undefined,
  switches: string[],
): string | undefined {
  const [, name, value] = arg.match(/^--(\w+)(=?)/) ?? [];
  const takesNext = next === "true" || next === "false";
  const letter = /^-[qh]+$/.test(arg) ? arg.at(-1) : undefined;
  if (value !== "=" && !takesNext) return undefined;
  return switches.find((long) => {
    const short = ALIASES[long];
    return name === long ||
      short !== undefined && (name === short || letter === short);
  });
}

/** NaN for what is not a whole decimal number. */
function wholeNumber(text: string): number {
  return /^\d+$/.test(text) ? Number(text) : NaN;
}

/** NaN for what is not a plain decimal number of seconds. */
function milliseconds(text: string): number {
  return /^\d+(\.\d+)?$/.test(text) ? 1000 * Number(text) : NaN;
}

function format(
  { hostname, port }: { hostname: string; port: number },
): string {
  const bare = hostname.includes(":") && !hostname.startsWith("[");
  return bare ? `[${hostname}]:${port}` : `${hostname}:${port}`;
}

/**
 * A peer's text on one line that can do nothing to a terminal: control
 * characters, line and paragraph separators and bidirectional controls become
 * escapes. The line end that nc and telnet add is left off.
 */
function printable(text: string): string {
  return text.replace(/\r?\n$/, "").replace(
    /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu,
    (control) =>
      ({ "\n": "\\n", "\r": "\\r", "\t": "\\t" })[control] ??
        `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

/** Lines that wait to be written: about a mebibyte, and the rest is dropped. */
class LineStore {
  readonly #lines: string[] = [];
  #size = 0;
  #dropped = 0;

  get isEmpty(): boolean {
    return this.#lines.length === 0;
  }

  add(line: string): void {
    if (this.#size + line.length > 2 ** 20) this.#dropped++;
    else this.#store(line);
  }

  /** Where lines were dropped, one that says so comes in their place. */
  addDropped(): void {
    if (this.#dropped === 0) return;
    const lines = this.#dropped === 1 ? "line" : "lines";
    this.#store(`${this.#dropped} ${lines} dropped`);
    this.#dropped = 0;
  }

  #store(line: string): void {
    this.#lines.push(`${line}\n`);
    this.#size += line.length + 1;
  }

  /** Moves whole lines, or else a part of a line, and gives their length. */
  moveTo(buffer: Uint8Array): number {
    let length = 0;
    let whole = 0;
    for (const line of this.#lines) {
      const { read, written } = encoder.encodeInto(
        line,
        buffer.subarray(length),
      );
      const isPart = read < line.length;
      if (isPart && whole > 0) break;
      this.#size -= read;
      length += written;
      if (isPart) {
        this.#lines[0] = line.slice(read);
        break;
      }
      whole++;
    }
    this.#lines.splice(0, whole);
    return length;
  }
}

/**
 * Writes lines to stdout, in order, without blocking: while the reader of a pipe
 * does not read, or after Ctrl-S, `console.log` would hold up every connection,
 * and the stop signals, too.
 */
class LineWriter {
  /** The first error of a write. What it was to write is lost. */
  failure: Error | undefined;
  readonly #store = new LineStore();
  // A larger write to a pipe may be done in part, and then done twice.
  readonly #buffer = new Uint8Array(4096);
  #pieces = 0;
  #torn = false;
  #writing: Promise<void> | undefined;

  /** Pieces that were written, or undefined if there is nothing to write. */
  get progress(): number | undefined {
    return this.#writing && this.#pieces;
  }

  /** Resolves when all lines have been written, or are lost. */
  get written(): Promise<void> {
    return this.#writing ?? Promise.resolve();
  }

  /** Takes a line, and gives `written`. */
  write(line: string): Promise<void> {
    this.#store.add(line);
    return this.#writing ??= this.#writeAll();
  }

  async #writeAll(): Promise<void> {
    while (!this.#store.isEmpty) {
      // Of a write that failed, a part may stand there: begin on a fresh line.
      const begun = this.#torn ? 1 : 0;
      this.#buffer[0] = LINE_END;
      const length = this.#store.moveTo(this.#buffer.subarray(begun));
      try {
        await this.#writePiece(this.#buffer.subarray(0, begun + length));
        this.#torn = false;
      } catch (error) {
        this.failure ??= error as Error; // A full disk, or a closed pipe.
        this.#torn = true;
      }
      this.#pieces++;
      this.#store.addDropped();
    }
    this.#writing = undefined;
  }

  async #writePiece(piece: Uint8Array): Promise<void> {
    let written = 0;
    while (written < piece.length) {
      try {
        written += await Deno.stdout.write(piece.subarray(written));
      } catch (error) {
        // Another program that shares a pipe can have set it not to block.
        if (!(error instanceof Deno.errors.WouldBlock)) throw error;
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
  }
}

/** The exit code where it matters that the lines are out: says if they are not. */
function printed(out: LineWriter): number {
  if (out.failure === undefined) return 0;
  fail(`cannot print: ${out.failure.message}`);
  return 1;
}

/**
 * Shows an error on stderr, or nowhere where that fails. It may quote a peer,
 * so nothing in it but its line ends can drive the terminal.
 */
function report(error: unknown): void {
  try {
    const text = typeof error === "string" ? error : Deno.inspect(error);
    console.error(text.split("\n").map(printable).join("\n"));
  } catch {
    // There is no other place to say it.
  }
}

function fail(message: string): void {
  report(`error: ${printable(message)}`);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
