#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP client: it connects to a server, reads the server's greeting to its
 * end, sends a reply, and closes.
 *
 * As a command:
 *
 * ```sh
 * deno run --allow-net client.ts
 * ```
 *
 * As a library:
 *
 * ```ts
 * import { exchange } from "./client.ts";
 *
 * console.log(await exchange({ reply: "hello, server" }));
 * ```
 *
 * @module
 */

import { parseArgs } from "@std/cli/parse-args";

// The defaults, with times in milliseconds.
const HOSTNAME = "127.0.0.1";
const PORT = 8888;
const REPLY = "你好服務器";
const TIMEOUT = 10_000;
const WAIT = 0;
const MAX_GREETING_BYTES = 64 * 1024;

// Bytes that a greeting is read into at first; a longer one gets more.
const FIRST_READ = 512;

// Milliseconds from a refused connection to the next try.
const RETRY_PAUSE = 50;

/** Options of {@linkcode exchange}. */
export interface ExchangeOptions {
  /** The server's address, or a name of it. Default: `"127.0.0.1"`. */
  hostname?: string;
  /** The server's port, from 1. Default: 8888. */
  port?: number;
  /** What the server is sent, in UTF-8. Default: `"你好服務器"`. */
  reply?: string;
  /**
   * Milliseconds for the whole exchange, connecting included, above 0 and at
   * most 2147483647. Default: 10000.
   */
  timeout?: number;
  /**
   * Milliseconds to keep trying while the connection is refused, at most
   * 2147483647. They do not count for `timeout`. Default: 0, a single try.
   */
  wait?: number;
  /** The longest greeting that is taken, in bytes, from 1. Default: 65536. */
  maxGreetingBytes?: number;
  /** Aborting it ends the exchange, which rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Called with the server's address once the connection stands. */
  onConnect?: (server: Deno.NetAddr) => void;
  /** Called with the greeting before the reply is sent. */
  onGreeting?: (greeting: string) => void;
}

/**
 * Connects, reads the greeting, sends the reply and closes.
 *
 * @param options Where to connect, what to reply, and the limits.
 * @returns The greeting as it came, bytes that are not UTF-8 as U+FFFD.
 * @throws {RangeError} If a number is out of its range.
 * @throws {TypeError} If a text is empty, or no text.
 * @throws {Deno.errors.TimedOut} If the time was up.
 * @throws {Deno.errors.UnexpectedEof} If the server closed without a greeting.
 * @throws {Deno.errors.InvalidData} If the greeting was too long.
 * @throws {Error} What `Deno.connect`, the connection or a callback throws,
 * such as `Deno.errors.ConnectionRefused`, and the reason of an aborted `signal`.
 */
export async function exchange(options: ExchangeOptions = {}): Promise<string> {
  const {
    hostname = HOSTNAME,
    port = PORT,
    reply = REPLY,
    timeout = TIMEOUT,
    wait = WAIT,
    maxGreetingBytes = MAX_GREETING_BYTES,
    signal,
    onConnect,
    onGreeting,
  } = options;
  checkText("hostname", hostname);
  checkPort("port", port);
  checkText("reply", reply);
  checkTime("timeout", "above 0", timeout, `${timeout} ms`);
  checkTime("wait", "from 0", wait, `${wait} ms`);
  checkCount("maxGreetingBytes", maxGreetingBytes);
  signal?.throwIfAborted();

  // What ends the exchange early: its deadline, or the caller's signal.
  const stop = new AbortController();
  const timeIsUp = () => stop.abort(new Deno.errors.TimedOut("too late"));
  const abort = () => stop.abort(signal?.reason);
  signal?.addEventListener("abort", abort);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const waitEnds = performance.now() + wait;

  async function connect(): Promise<Deno.TcpConn> {
    for (;;) {
      timer = setTimeout(timeIsUp, timeout);
      try {
        return await Deno.connect({ hostname, port, signal: stop.signal });
      } catch (error) {
        // Refused: nothing listens there, or not yet. Only this can be waited
        // for, and nothing tells when it is over but another try.
        const refused = error instanceof Deno.errors.ConnectionRefused;
        if (!refused || performance.now() >= waitEnds) throw error;
      }
      clearTimeout(timer);
      await new Promise((resolve) => setTimeout(resolve, RETRY_PAUSE));
    }
  }

  try {
    using connection = await connect(); // closed at the end, on every path
    // Closing makes the pending read or write reject: without it, a server that
    // falls silent would hold this client for good.
    stop.signal.onabort = () => connection[Symbol.dispose]();
    stop.signal.throwIfAborted();
    onConnect?.(connection.remoteAddr);
    const greeting = await receive(connection, maxGreetingBytes);
    if (greeting === "") throw new Deno.errors.UnexpectedEof("no greeting");
    onGreeting?.(greeting);
    await send(connection, reply);
    return greeting;
  } catch (error) {
    // What ended the exchange is the deadline or the signal, if it was either,
    // and not the error of the call that was under way.
    stop.signal.throwIfAborted();
    throw error;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
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

/** Sends all of a text. A write may take only a part of what it is given. */
async function send(connection: Deno.TcpConn, text: string): Promise<void> {
  let rest = new TextEncoder().encode(text);
  while (rest.length > 0) rest = rest.subarray(await connection.write(rest));
}

function checkText(name: string, text: string): void {
  if (typeof text !== "string" || text === "") {
    throw new TypeError(`${name} must be a text that is not empty`);
  }
}

function checkPort(name: string, port: number, given: unknown = port): void {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new RangeError(
      `${name} must be a whole number from 1 to 65535, not ${given}`,
    );
  }
}

function checkCount(name: string, count: number): void {
  if (!Number.isSafeInteger(count) || count < 1) {
    throw new RangeError(`${name} must be a whole number from 1, not ${count}`);
  }
}

function checkTime(
  name: string,
  least: "above 0" | "from 0",
  time: number,
  given: string,
): void {
  const enough = least === "from 0" ? time >= 0 : time > 0;
  // A longer timer would fire at once.
  if (!Number.isFinite(time) || !enough || time > 2_147_483_647) {
    throw new RangeError(
      `${name} must be a number of seconds ${least}, at most 2147483, not ${given}`,
    );
  }
}

// The command

const HELP = `Connects to a TCP server, reads its greeting and sends a reply.

usage: deno run --allow-net client.ts [flags]

  --host HOST        the server's address (${HOSTNAME})
  --port, -p PORT    the server's port (${PORT})
  --reply TEXT       what the server is sent (${REPLY})
  --timeout SECONDS  for the whole exchange, connecting included (${
  TIMEOUT / 1000
})
  --wait SECONDS     how long to keep trying while refused (${WAIT / 1000})
  --quiet, -q        print the greeting alone (off)
  --help, -h         show this help (off)

example: deno run --allow-net client.ts --port 9000 --reply "Hello, server"`;

/**
 * The command, all but `Deno.exit`: does one exchange and prints it.
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 done, 1 could not be done, 2 the command line is
 * wrong.
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
  const { quiet, ...options } = flags;
  try {
    await exchange({
      ...options,
      onConnect: (server) => {
        if (!quiet) print(`Connected to ${format(server)}`);
      },
      onGreeting: (greeting) =>
        print(`${quiet ? "" : "Greeting: "}${printable(greeting)}`),
    });
  } catch (error) {
    fail(explain(error as Error, format(options)));
    return 1;
  }
  if (!quiet) print(`Replied: ${printable(options.reply)}`);
  return 0;
}

/**
 * Reads the flags. Returns undefined if help is wanted, and throws a RangeError
 * or a TypeError that says what is wrong.
 */
function parse(args: string[]) {
  const valued = ["host", "port", "reply", "timeout", "wait"] as const;
  const stray: string[] = [];
  const flags = parseArgs(args, {
    string: valued,
    boolean: ["quiet", "help"],
    alias: { port: "p", quiet: "q", help: "h" },
    default: {
      host: HOSTNAME,
      port: `${PORT}`,
      reply: REPLY,
      timeout: `${TIMEOUT / 1000}`,
      wait: `${WAIT / 1000}`,
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
  const { host: hostname, reply, quiet } = flags;
  const port = wholeNumber(flags.port);
  const timeout = milliseconds(flags.timeout);
  const wait = milliseconds(flags.wait);
  checkPort("--port", port, `"${flags.port}"`);
  checkTime("--timeout", "above 0", timeout, `"${flags.timeout}"`);
  checkTime("--wait", "from 0", wait, `"${flags.wait}"`);
  return { hostname, port, reply, timeout, wait, quiet };
}

/** NaN for what is not a whole decimal number. */
function wholeNumber(text: string): number {
  return /^\d+$/.test(text) ? Number(text) : NaN;
}

/** NaN for what is not a number of seconds. */
function milliseconds(seconds: string): number {
  return 1000 * (seconds.trim() === "" ? NaN : Number(seconds));
}

/** What went wrong, in a sentence for a person. */
function explain(error: Error, server: string): string {
  if (error instanceof Deno.errors.ConnectionRefused) {
    return `nothing listens on ${server}; start the server, or use --wait SECONDS`;
  }
  if (error instanceof Deno.errors.TimedOut) {
    return `${server} took too long; give it more time with --timeout SECONDS`;
  }
  if (
    error instanceof Deno.errors.ConnectionReset ||
    error instanceof Deno.errors.ConnectionAborted ||
    error instanceof Deno.errors.BrokenPipe
  ) return `${server} reset the connection`;
  if (error instanceof Deno.errors.UnexpectedEof) {
    return `${server} closed without a greeting`;
  }
  if (error instanceof Deno.errors.InvalidData) {
    return `${server} sent a greeting longer than ${MAX_GREETING_BYTES} bytes`;
  }
  if (error instanceof Deno.errors.NotCapable) {
    return `no permission to connect to ${server}; run with --allow-net=${server}`;
  }
  return `cannot reach ${server}: ${error.message}`;
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

/** A line that can't be written is lost, and nothing else is. */
function print(line: string, write = console.log): void {
  try {
    write(line);
  } catch {
    // The disk may be full, or the reader of a pipe gone.
  }
}

function fail(message: string): void {
  print(printable(`error: ${message}`), console.error);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
