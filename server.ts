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

import { parseArgs } from "@std/cli/parse-args";

// The defaults, with the time in milliseconds.
const HOSTNAME = "127.0.0.1";
const PORT = 8888;
const GREETING = "你好,客戶端,我是服務器";
const TIMEOUT = 10_000;
const MAX_CLIENTS = 1024;
const MAX_REPLY_BYTES = 64 * 1024;

// Clients that the kernel keeps until they are accepted. Deno's default of 511
// overflows in a burst, and each overflow costs a client a second.
const BACKLOG = 4096;

// Accepted clients that may be waiting for the first bytes of their greeting.
// Deno starves the first write on a fresh connection while it accepts others:
// without this limit, some of thousands of clients would wait for a second.
const MAX_UNGREETED = 32;

// Bytes that a reply is first read into. Few, as each silent client holds them.
const FIRST_READ = 128;

// Milliseconds until accepting is tried again after an error, and without an
// error until the next one is told.
const ACCEPT_PAUSE = 100;
const ACCEPT_SPELL = 60_000;

/**
 * How an exchange with a client ended:
 *
 * - `"replied"`: the reply was read to its end;
 * - `"left"`: the client ended without a byte of a reply;
 * - `"timed-out"`: the reply had not ended when the time was up or the server
 *   was aborted;
 * - `"reset"`: the connection broke before the reply had ended;
 * - `"too-long"`: the reply was longer than `maxReplyBytes`. None of it is
 *   kept.
 */
export type Outcome = "replied" | "left" | "timed-out" | "reset" | "too-long";

/** An exchange that is over. */
export interface Exchange {
  /** The client's address. */
  client: Deno.NetAddr;
  /** How it ended. */
  outcome: Outcome;
  /**
   * The reply as it came, with U+FFFD for bytes that are not UTF-8. Empty
   * unless the outcome is `"replied"`.
   */
  reply: string;
}

/**
 * Options of {@linkcode serve}. An error in a callback, thrown or rejected
 * with, goes to stderr, and the server goes on.
 */
export interface ServeOptions {
  /**
   * The address to listen on, or a name of it. Default: `"127.0.0.1"`, which
   * only this machine can reach.
   */
  hostname?: string;
  /** The port to listen on; 0 picks a free one. Default: 8888. */
  port?: number;
  /** What each client is sent, in UTF-8. Default: `"你好,客戶端,我是服務器"`. */
  greeting?: string;
  /**
   * Milliseconds from a client's arrival to the end of its reply, above 0 and
   * at most 2147483647. Default: 10000.
   */
  timeout?: number;
  /**
   * Clients served at once, from 1. Further ones wait in the kernel's queue.
   * Default: 1024.
   */
  maxClients?: number;
  /** The longest reply that is taken, in bytes, from 1. Default: 65536. */
  maxReplyBytes?: number;
  /**
   * Aborting it ends the server at once. Exchanges under way end as
   * `"timed-out"`.
   */
  signal?: AbortSignal;
  /** Called once, before `serve` returns, with the server's address. */
  onListen?: (addr: Deno.NetAddr) => void | Promise<void>;
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
 * @param options Where to listen, what to send, the limits, and whom to tell.
 * @returns The running server.
 * @throws {RangeError} If a number is out of its range.
 * @throws {TypeError} If a text is empty, or no text.
 * @throws {Error} What `Deno.listen` throws, such as `Deno.errors.AddrInUse`,
 * and the reason of a `signal` that is aborted already.
 */
export function serve(options: ServeOptions = {}): Server {
  const {
    hostname = HOSTNAME,
    port = PORT,
    greeting = GREETING,
    timeout = TIMEOUT,
    maxClients = MAX_CLIENTS,
    maxReplyBytes = MAX_REPLY_BYTES,
    signal,
    onListen,
    onConnect,
    onOutcome,
    onAcceptError,
  } = options;
  checkText("hostname", hostname);
  checkPort("port", port);
  checkText("greeting", greeting);
  checkTime("timeout", timeout, `${timeout} ms`);
  checkCount("maxClients", maxClients);
  checkCount("maxReplyBytes", maxReplyBytes);
  signal?.throwIfAborted();

  // The clients being served, in the order of their arrival, each with the time
  // at which it must have ended.
  const deadlines = new Map<Deno.TcpConn, number>();
  let deadlineTimer: ReturnType<typeof setTimeout> | undefined;
  let ungreeted = 0;
  let stopping = false;

  // A wait for a change, and what ends it: a client was greeted, or has left.
  let wake = () => {};
  const change = () => new Promise<void>((resolve) => wake = resolve);

  const greetingBytes = new TextEncoder().encode(greeting);
  const listener = Deno.listen({ hostname, port, tcpBacklog: BACKLOG });

  async function acceptClients(): Promise<void> {
    let lastError = -Infinity;
    while (!stopping) {
      // No room: further clients wait in the kernel's queue. None is refused.
      if (deadlines.size >= maxClients || ungreeted >= MAX_UNGREETED) {
        await change();
        continue;
      }
      try {
        const connection = await listener.accept();
        // The server was stopped while this client was being accepted.
        if (stopping) return connection.close();
        // Not awaited, or one client would hold up the next. Never rejects.
        exchange(connection);
      } catch (error) {
        // Closing the listener makes a pending accept reject.
        if (stopping) return;
        // This client reset before it was accepted. That must not end the
        // program, nor keep the next client waiting.
        if (
          error instanceof Deno.errors.NotConnected ||
          error instanceof Deno.errors.ConnectionReset ||
          error instanceof Deno.errors.ConnectionAborted
        ) continue;
        // Out of file descriptors, most likely. To try at once would spin.
        const now = performance.now();
        if (now - lastError > ACCEPT_SPELL) tell(onAcceptError, error as Error);
        lastError = now;
        const pause = setTimeout(() => wake(), ACCEPT_PAUSE);
        await change();
        clearTimeout(pause);
      }
    }
  }

  /** The exchange with one client: greet, half-close, read, close. */
  async function exchange(connection: Deno.TcpConn): Promise<void> {
    const client = connection.remoteAddr;
    deadlines.set(connection, performance.now() + timeout);
    deadlineTimer ??= setTimeout(closeOverdue, timeout);
    tell(onConnect, client);
    let outcome: Outcome;
    let reply = "";
    try {
      using _ = connection; // closed at the end of the block, on every path
      await greet(connection);
      reply = await receive(connection, maxReplyBytes);
      outcome = reply === "" ? "left" : "replied";
    } catch (error) {
      const timeIsUp = deadlines.get(connection)! <= performance.now();
      if (error instanceof Deno.errors.InvalidData) outcome = "too-long";
      else outcome = timeIsUp ? "timed-out" : "reset";
    }
    tell(onOutcome, { client, outcome, reply });
    deadlines.delete(connection);
    wake();
  }

  const greeted = () => {
    ungreeted--;
    wake();
  };

  /** Sends the greeting, then closes the writing half. */
  async function greet(connection: Deno.TcpConn): Promise<void> {
    try {
      ungreeted++;
      let sent = await connection.write(greetingBytes).finally(greeted);
      // A write may take only a part of what it is given.
      while (sent < greetingBytes.length) {
        sent += await connection.write(greetingBytes.subarray(sent));
      }
      // The half-close. A close would shut the reply out, and without either
      // the client could not tell where the greeting ends.
      await connection.closeWrite();
    } catch (error) {
      // A reset is told once, to the first call that meets it.
      if (error instanceof Deno.errors.ConnectionReset) throw error;
      // Any other client may have replied and gone before it was greeted. Its
      // reply is still there to be read.
    }
  }

  /**
   * Closes the connections whose time is up. One timer serves all: as all have
   * the same time, the first that came is the first that is due.
   */
  function closeOverdue(): void {
    clearTimeout(deadlineTimer);
    for (const [connection, deadline] of deadlines) {
      const left = deadline - performance.now();
      if (left > 0) {
        deadlineTimer = setTimeout(closeOverdue, left);
        return;
      }
      // This makes the pending read or write reject, which ends the exchange.
      connection[Symbol.dispose]();
    }
    deadlineTimer = undefined;
  }

  function abort(): void {
    shutdown();
    for (const connection of deadlines.keys()) deadlines.set(connection, 0);
    closeOverdue();
  }

  async function run(): Promise<void> {
    await acceptClients();
    while (deadlines.size > 0) await change();
    clearTimeout(deadlineTimer);
    signal?.removeEventListener("abort", abort);
  }

  function shutdown(): Promise<void> {
    stopping = true;
    listener[Symbol.dispose]();
    return finished;
  }

  signal?.addEventListener("abort", abort);
  const finished = run();
  tell(onListen, listener.addr);
  return {
    addr: listener.addr,
    finished,
    shutdown,
    [Symbol.asyncDispose]: shutdown,
  };
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Reads to the end of what the peer sends. One read is not one message. */
async function receive(
  connection: Deno.TcpConn,
  limit: number,
): Promise<string> {
  let buffer = new Uint8Array(FIRST_READ);
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

/** Calls back. Never rejects: what a callback throws is shown, no more. */
async function tell<T>(
  callback: ((news: T) => void | Promise<void>) | undefined,
  news: T,
): Promise<void> {
  try {
    await callback?.(news);
  } catch (error) {
    report(error);
  }
}

function checkText(name: string, text: string): void {
  if (typeof text !== "string" || text === "") {
    throw new TypeError(`${name} must be a text that is not empty`);
  }
}

function checkPort(name: string, port: number, given: unknown = port): void {
  if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    throw new RangeError(
      `${name} must be a whole number from 0 to 65535, not ${given}`,
    );
  }
}

function checkCount(name: string, count: number, given: unknown = count): void {
  if (!Number.isSafeInteger(count) || count < 1) {
    throw new RangeError(`${name} must be a whole number from 1, not ${given}`);
  }
}

function checkTime(name: string, time: number, given: string): void {
  // A longer timer would fire at once.
  if (!Number.isFinite(time) || time <= 0 || time > 2_147_483_647) {
    throw new RangeError(
      `${name} must be a number of seconds above 0, at most 2147483, not ${given}`,
    );
  }
}

// The command

const HELP = `Sends each TCP client a greeting and reads its reply.

usage: deno run --allow-net server.ts [flags]

  --host HOST        the address to listen on (${HOSTNAME})
  --port, -p PORT    the port to listen on; 0 picks a free one (${PORT})
  --greeting TEXT    what each client is sent (${GREETING})
  --timeout SECONDS  from a client's arrival to the end of its reply (${
  TIMEOUT / 1000
})
  --max-clients N    clients served at once; further ones wait (${MAX_CLIENTS})
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
};

// Windows has no SIGTERM to listen for.
const STOP_SIGNALS: Deno.Signal[] = Deno.build.os === "windows"
  ? ["SIGINT"]
  : ["SIGINT", "SIGTERM"];

/**
 * The command, all but `Deno.exit`: prints what happens, and ends after one
 * client with `--once`, otherwise on a stop signal.
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 done, 1 could not be done, 2 the command line is
 * wrong, 130 ended by a second stop signal.
 */
export async function main(args: string[]): Promise<number> {
  let flags: ReturnType<typeof parse>;
  try {
    flags = parse(args);
  } catch (error) {
    fail(`${(error as Error).message}; see --help`);
    return 2;
  }
  if (flags === undefined) {
    print(HELP);
    return 0;
  }
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
      onListen: (addr) => print(`Listening on ${format(addr)}`),
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

/**
 * Reads the flags. Returns undefined if help is wanted, and throws a RangeError
 * or a TypeError that says what is wrong.
 */
function parse(args: string[]) {
  const valued = [
    "host",
    "port",
    "greeting",
    "timeout",
    "max-clients",
  ] as const;
  const stray: string[] = [];
  const flags = parseArgs(args, {
    string: valued,
    boolean: ["once", "quiet", "help"],
    alias: { port: "p", quiet: "q", help: "h" },
    default: {
      host: HOSTNAME,
      port: `${PORT}`,
      greeting: GREETING,
      timeout: `${TIMEOUT / 1000}`,
      "max-clients": `${MAX_CLIENTS}`,
    },
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
  const { host: hostname, greeting, once, quiet } = flags;
  const port = wholeNumber(flags.port);
  const timeout = 1000 * Number(flags.timeout);
  const maxClients = wholeNumber(flags["max-clients"]);
  checkPort("--port", port, `"${flags.port}"`);
  checkTime("--timeout", timeout, `"${flags.timeout}"`);
  checkCount("--max-clients", maxClients, `"${flags["max-clients"]}"`);
  return { hostname, port, greeting, timeout, maxClients, once, quiet };
}

/** NaN for what is not a whole decimal number. */
function wholeNumber(text: string): number {
  return /^\d+$/.test(text) ? Number(text) : NaN;
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
