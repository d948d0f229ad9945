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
 * The exchange with one client, when the server listens (1) and has accepted
 * the client (2). Resolves to the reply.
 */
async function handle(
  connection: Deno.TcpConn,
  { greeting, handler, maxReplyBytes }: Settings,
  firstWrites: FirstWrites,
): Promise<string> {
  using _ = connection; // 6. Close: at the end of this block, on every path.
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
  return await (handler?.(connection) ?? receive(connection, maxReplyBytes));
}

async function greet(
  connection: Deno.TcpConn,
  greeting: Uint8Array<ArrayBuffer>,
  firstWrites: FirstWrites,
): Promise<void> {
  if (greeting.length === 0) return;
  let sent: number;
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
 * - `"timed-out"`: the reply had not ended when the time was up or the server
 *   was aborted;
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
 * with, goes to stderr, and the server goes on.
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
   * Milliseconds from a client's arrival to the end of its reply, above 0 and
   * at most 2147483647; or `Infinity`, for no deadline.
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
   * The longest reply that is taken, in bytes, from 1. A `handler` has limits
   * of its own.
   *
   * @default {65536}
   */
  maxReplyBytes?: number;
  /**
   * Aborting it ends the server at once. Exchanges under way end as
   * `"timed-out"`.
   */
  signal?: AbortSignal;
  /** Called once, before `serve` returns, with the server's address. */
  onListen?: (address: Deno.NetAddr) => void | Promise<void>;
  /** Called with the address of each client that is accepted. */
  onConnect?: (client: Deno.NetAddr) => void | Promise<void>;
  /** Called once for each accepted client, after its connection is closed. */
  onOutcome?: (exchange: Exchange) => void | Promise<void>;
  /**
   * Called when no client can be accepted, mostly for want of file descriptors.
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
   * Resolves when the server has ended and all its connections are closed.
   * Never rejects.
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
 *   onConnect: () => void server.shutdown(),
 *   onOutcome: ({ client, reply }) => console.log(client.port, reply),
 * });
 * await server.finished;
 * ```
 *
 * @param options Where to listen, what to send, the limits, and what to call.
 * @returns The running server.
 * @throws {RangeError} If a number is out of its range.
 * @throws {TypeError} If a text is empty, or no text.
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
  const clients = new Clients(settings);

  async function run(): Promise<void> {
    await acceptAll(listener, clients, settings);
    await clients.allGone();
    signal?.removeEventListener("abort", abort);
  }
  function shutdown(): Promise<void> {
    clients.stopAccepting();
    // Makes a pending accept reject. A loop that waits for room instead needs no
    // waking: the client that makes room wakes it. Not `close()`, which may be
    // called only once.
    listener[Symbol.dispose]();
    return finished;
  }
  function abort(): void {
    shutdown();
    clients.closeAll();
  }

  signal?.addEventListener("abort", abort);
  const finished = run();
  notify(onListen, listener.addr);
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
  maxReplyBytes: 64 * 1024,
};

/** The options, checked, with the default for each that is left out. */
function settingsOf(options: ServeOptions) {
  const {
    hostname = DEFAULTS.hostname,
    port = DEFAULTS.port,
    greeting = DEFAULTS.greeting,
    timeout = DEFAULTS.timeout,
    maxClients = DEFAULTS.maxClients,
    maxReplyBytes = DEFAULTS.maxReplyBytes,
    ...others
  } = options;
  checkText("hostname", hostname, 1);
  checkWhole("port", port, 0, 65_535);
  checkText("greeting", greeting, 0);
  if (timeout !== Infinity) checkTime("timeout", timeout, "above 0");
  checkWhole("maxClients", maxClients, 1);
  checkWhole("maxReplyBytes", maxReplyBytes, 1);
  return {
    hostname,
    port,
    greeting: new TextEncoder().encode(greeting),
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
  { onAcceptError }: Settings,
): Promise<void> {
  let lastError = -Infinity;
  while (clients.accepting) {
    // No room: further clients wait in the kernel's queue. None is refused.
    if (clients.full) {
      await clients.change.next();
      continue;
    }
    let connection: Deno.TcpConn;
    try {
      connection = await listener.accept(); // 2. Accept.
    } catch (error) {
      // Closing the listener makes a pending accept reject. And a client that
      // reset before it was accepted must not end the program, nor keep the
      // next one waiting.
      if (!clients.accepting || isLostClient(error)) continue;
      // Out of file descriptors, most likely. It is reported once a minute. To
      // try again at once would spin: a client may leave, or time pass.
      const now = performance.now();
      if (now - lastError > 60_000) notify(onAcceptError, error as Error);
      lastError = now;
      const pause = setTimeout(() => clients.change.notify(), 100);
      await clients.change.next();
      clearTimeout(pause);
      continue;
    }
    // Not awaited, or one client would hold up the next. Never rejects.
    if (clients.accepting) clients.serve(connection);
    else connection.close(); // The server was stopped in the meantime.
  }
}

/** The clients being served, and what becomes of each. */
class Clients {
  /** A client was greeted, or has left. */
  readonly change = new Change();
  readonly #settings: Settings;
  readonly #deadlines: Deadlines;
  readonly #firstWrites = new FirstWrites(this.change);
  #accepting = true;

  constructor(settings: Settings) {
    this.#settings = settings;
    this.#deadlines = new Deadlines(settings.timeout);
  }

  get accepting(): boolean {
    return this.#accepting;
  }

  get full(): boolean {
    return this.#deadlines.size >= this.#settings.maxClients ||
      this.#firstWrites.full;
  }

  /** Serves a client, from its acceptance to its outcome. Never rejects. */
  async serve(connection: Deno.TcpConn): Promise<void> {
    const { onConnect, onOutcome, handler } = this.#settings;
    const client = connection.remoteAddr;
    const entry = this.#deadlines.add(connection);
    notify(onConnect, client);
    let outcome: Outcome;
    let reply = "";
    try {
      reply = await handle(connection, this.#settings, this.#firstWrites);
      outcome = reply === "" ? "left" : "replied";
    } catch (error) {
      outcome = outcomeOf(error, handler);
      if (outcome === "failed") report(error);
    }
    // If the server has closed the connection, that is the outcome, whatever
    // the handler made of it.
    if (entry.closedAs !== undefined) [outcome, reply] = [entry.closedAs, ""];
    this.#deadlines.delete(entry);
    notify(onOutcome, { client, outcome, reply });
    this.change.notify();
  }

  stopAccepting(): void {
    this.#accepting = false;
  }

  closeAll(): void {
    this.#deadlines.close(Infinity, "timed-out");
  }

  async allGone(): Promise<void> {
    while (this.#deadlines.size > 0) await this.change.next();
    this.#deadlines.stop();
  }
}

/** What one may wait for: the accept loop, and after it the end. */
class Change {
  // One function will do, as only one waits at a time.
  #resolve = () => {};

  next(): Promise<void> {
    return new Promise((resolve) => this.#resolve = resolve);
  }

  notify(): void {
    this.#resolve();
  }
}

/** A connection being served, in a list in the order of arrival. */
interface Entry {
  readonly connection: Deno.TcpConn;
  /** When its time is up. */
  readonly due: number;
  /** The outcome, once the server has closed the connection. */
  closedAs?: Outcome;
  previous: Entry | undefined;
  next: Entry | undefined;
}

/**
 * The connections being served, and the time that each has left. As all have
 * the same time, the first that came is the first due, and one timer serves
 * all. They are linked by hand, as each comes and goes: a Map costs a tenth
 * more CPU per exchange.
 */
class Deadlines {
  readonly #timeout: number;
  #size = 0;
  #first: Entry | undefined;
  #last: Entry | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(timeout: number) {
    this.#timeout = timeout;
  }

  get size(): number {
    return this.#size;
  }

  add(connection: Deno.TcpConn): Entry {
    const due = performance.now() + this.#timeout;
    const previous = this.#last;
    const entry: Entry = { connection, due, previous, next: undefined };
    if (previous === undefined) this.#first = entry;
    else previous.next = entry;
    this.#last = entry;
    this.#size++;
    // A timer would take Infinity for 0.
    if (due !== Infinity) {
      this.#timer ??= setTimeout(() => this.#closeOverdue(), this.#timeout);
    }
    return entry;
  }

  delete(entry: Entry): void {
    const { previous, next } = entry;
    if (previous === undefined) this.#first = next;
    else previous.next = next;
    if (next === undefined) this.#last = previous;
    else next.previous = previous;
    // Else a dead entry that the garbage collector still takes for alive would
    // keep all that came after it alive, too.
    entry.previous = entry.next = undefined;
    this.#size--;
  }

  /** Closes those due by then; the outcome is the same for all of them. */
  close(until: number, outcome: Outcome): void {
    let entry = this.#first;
    for (; entry !== undefined && entry.due <= until; entry = entry.next) {
      entry.closedAs ??= outcome;
      // Makes the pending read or write reject, which ends the exchange. Not
      // `close()`, which throws where a handler has closed it already.
      entry.connection[Symbol.dispose]();
    }
    clearTimeout(this.#timer);
    this.#timer = entry &&
      setTimeout(() => this.#closeOverdue(), entry.due - performance.now());
  }

  #closeOverdue(): void {
    this.close(performance.now(), "timed-out");
  }

  stop(): void {
    clearTimeout(this.#timer);
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

/** Calls back. What a callback throws or rejects with is shown, no more. */
function notify<T>(
  callback: ((event: T) => void | Promise<void>) | undefined,
  event: T,
): void {
  try {
    const promise = callback?.(event);
    if (promise !== undefined) Promise.resolve(promise).catch(report);
  } catch (error) {
    report(error);
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

/** Whether `accept` rejected because of a client that is gone. */
function isLostClient(error: unknown): boolean {
  return error instanceof Deno.errors.NotConnected ||
    error instanceof Deno.errors.ConnectionReset ||
    error instanceof Deno.errors.ConnectionAborted;
}

// The command

const HELP = `Sends each TCP client a greeting and reads its reply.

usage: deno run --allow-net server.ts [flags]

  --host HOST        the address to listen on (${DEFAULTS.hostname})
  --port, -p PORT    the port to listen on; 0 picks a free one (${DEFAULTS.port})
  --greeting TEXT    what each client is sent (${DEFAULTS.greeting})
  --timeout SECONDS  from a client's arrival to the end of its reply (${
  DEFAULTS.timeout / 1000
})
  --max-clients N    clients served at once; further ones wait (${DEFAULTS.maxClients})
  --once             serve one client, then end (off)
  --quiet, -q        no line per client (off)
  --help, -h         show this help (off)

example: deno run --allow-net server.ts --port 9000 --greeting "Hello, client"`;

/** What is printed behind a client's address; the reply follows the first. */
const OUTCOMES: Record<Outcome, string> = {
  "replied": "replied: ",
  "left": "left without a reply",
  "timed-out": "timed out",
  "reset": "reset the connection",
  "too-long": "sent too long a reply",
  "failed": "failed",
};

// Windows has no SIGTERM to listen for.
const STOP_SIGNALS: Deno.Signal[] = Deno.build.os === "windows"
  ? ["SIGINT"]
  : ["SIGINT", "SIGTERM"];

/**
 * The command, all but `Deno.exit`: prints what happens, and ends after one
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
 * @returns The exit code: 0 done, 1 could not be done, 2 the command line is
 * wrong, 130 ended by a second stop signal.
 */
export async function main(args: string[]): Promise<number> {
  const flags = commandLine(args, parse, HELP);
  if (typeof flags === "number") return flags;
  const { once, quiet, ...options } = flags;

  let code = 0;
  let served = 0;
  let active = 0;
  const stop = new AbortController();
  let server: Server;
  try {
    server = serve({
      ...options,
      signal: stop.signal,
      onListen: (address) => print(`Listening on ${format(address)}`),
      onConnect: (client) => {
        served++;
        active++;
        if (!quiet) print(`${format(client)} connected`);
        // Not awaited here: main awaits the end below.
        if (once) server.shutdown();
      },
      onOutcome: ({ client, outcome, reply }) => {
        active--;
        if (once && outcome !== "replied" && outcome !== "left") code = 1;
        if (!quiet) {
          print(`${format(client)} ${OUTCOMES[outcome]}${printable(reply)}`);
        }
      },
      onAcceptError: ({ message }) =>
        fail(`no client can be accepted for now, still trying: ${message}`),
    });
  } catch (error) {
    fail(explain(error as Error, format(options)));
    return 1;
  }

  let signalled = false;
  const onSignal = () => {
    if (signalled) return stop.abort();
    signalled = true;
    print(`Stopping: ${count(active)} to finish`);
    server.shutdown();
  };
  for (const signal of STOP_SIGNALS) Deno.addSignalListener(signal, onSignal);
  await server.finished;
  for (const signal of STOP_SIGNALS) {
    Deno.removeSignalListener(signal, onSignal);
  }
  print(`Served ${count(served)}`);
  return stop.signal.aborted ? 130 : code;
}

/** Reads the flags, as {@linkcode commandLine} wants it. */
function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    greeting: DEFAULTS.greeting,
    timeout: `${DEFAULTS.timeout / 1000}`,
    "max-clients": `${DEFAULTS.maxClients}`,
  }, ["once", "quiet"]);
  if (flags === undefined) return undefined;
  const { host: hostname, greeting, once, quiet } = flags;
  const port = wholeNumber(flags.port);
  const timeout = milliseconds(flags.timeout);
  const maxClients = wholeNumber(flags["max-clients"]);
  checkWhole("--port", port, 0, 65_535, flags.port);
  checkTime("--timeout", timeout, "above 0", flags.timeout);
  checkWhole("--max-clients", maxClients, 1, undefined, flags["max-clients"]);
  return { hostname, port, greeting, timeout, maxClients, once, quiet };
}

/** What went wrong when listening, in a sentence for a person. */
function explain(error: Error, address: string): string {
  if (error instanceof Deno.errors.AddrInUse) {
    return `${address} is in use; choose another port with --port`;
  }
  if (error instanceof Deno.errors.AddrNotAvailable) {
    return `${address} is not an address of this machine; choose another with --host`;
  }
  if (error instanceof Deno.errors.PermissionDenied) {
    return `no right to listen on ${address}; choose a port from 1024 with --port`;
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

// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Reads to the end of what the peer sends. One read is not one message. */
async function receive(
  connection: Deno.TcpConn,
  limit: number,
): Promise<string> {
  // Small at first, as each silent peer holds it.
  let buffer = new Uint8Array(128);
  let length = 0;
  for (;;) {
    const count = await connection.read(buffer.subarray(length));
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

// The checks. `given` is the number as it stood on the command line.

function checkText(name: string, text: string, leastLength: 0 | 1): void {
  if (typeof text !== "string" || text.length < leastLength) {
    const demand = leastLength === 0 ? "" : " that is not empty";
    throw new TypeError(`${name} must be a text${demand}`);
  }
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
function commandLine<T>(
  args: string[],
  parse: (args: string[]) => T | undefined,
  help: string,
): T | number {
  try {
    const flags = parse(args);
    if (flags !== undefined) return flags;
    print(help);
    return 0;
  } catch (error) {
    fail(`${(error as Error).message}; see --help`);
    return 2;
  }
}

type Flags<Valued extends string, Switch extends string> =
  & Record<Valued, string>
  & Record<Switch, boolean>;

/**
 * Reads the flags: those that take a value, with their defaults, and those that
 * take none. Returns undefined if help is wanted.
 */
function parseFlags<Valued extends string, Switch extends string>(
  args: string[],
  defaults: Record<Valued, string>,
  switches: Switch[],
): Flags<Valued, Switch> | undefined {
  const valued = Object.keys(defaults);
  const stray: string[] = [];
  const flags = parseArgs(args, {
    string: valued,
    boolean: [...switches as string[], "help"],
    alias: { port: "p", quiet: "q", help: "h" },
    default: defaults as Record<string, string>,
    "--": true,
    unknown: (arg) => {
      stray.push(arg);
      return false;
    },
  });
  if (flags.help) return undefined;
  for (const name of valued) {
    if (flags[name] !== "") continue;
    throw new TypeError(
      `--${name} needs a value; write --${name}=VALUE if it begins with "-"`,
    );
  }
  const [first] = [...stray, ...flags["--"]];
  if (first !== undefined) throw new TypeError(`unexpected "${first}"`);
  return flags as unknown as Flags<Valued, Switch>;
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

let torn = false;

/** Prints a line. A full disk or a closed pipe costs this line and no more. */
function print(line: string): void {
  try {
    // Of a line that failed, a part may stand there: begin on a fresh one.
    console.log(torn ? `\n${line}` : line);
    torn = false;
  } catch {
    torn = true;
  }
}

/** Writes to stderr, or nowhere where that fails. */
function report(trouble: unknown): void {
  try {
    console.error(trouble);
  } catch {
    // There is no other place to say it.
  }
}

function fail(message: string): void {
  report(printable(`error: ${message}`));
}

if (import.meta.main) Deno.exit(await main(Deno.args));
