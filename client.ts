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

// In full: a script that runs alone has no deno.json to look a name up in.
// deno-lint-ignore no-import-prefix
import { parseArgs } from "jsr:@std/cli@^1.0.32/parse-args";

/**
 * The exchange with the server, when it listens (1) and the client has
 * connected (2). Resolves to the greeting.
 */
async function converse(
  connection: Deno.TcpConn,
  { reply, maxGreetingBytes, onConnect, onGreeting }: Settings,
): Promise<string> {
  using _ = connection; // 6. Close: at the end of this block, on every path.
  onConnect?.(connection.remoteAddr);
  // 3. Read the greeting, 4. to its end: there the server has half-closed.
  const greeting = await receive(connection, maxGreetingBytes);
  if (greeting === "") throw new Deno.errors.UnexpectedEof("no greeting");
  onGreeting?.(greeting);
  await send(connection, new TextEncoder().encode(reply)); // 5. Reply.
  return greeting;
}

/** Options of {@linkcode exchange}. */
export interface ExchangeOptions {
  /**
   * The server's address, or a name of it.
   *
   * @default {"127.0.0.1"}
   */
  hostname?: string;
  /**
   * The server's port, from 1.
   *
   * @default {8888}
   */
  port?: number;
  /**
   * What the server is sent, in UTF-8.
   *
   * @default {"你好服務器"}
   */
  reply?: string;
  /**
   * Milliseconds for the whole exchange, connecting included, above 0 and at
   * most 2147483647; or `Infinity`, for no deadline.
   *
   * @default {10000}
   */
  timeout?: number;
  /**
   * Milliseconds to keep trying while the connection is refused, at most
   * 2147483647. They do not count for `timeout`. 0 is a single try.
   *
   * @default {0}
   */
  wait?: number;
  /**
   * The longest greeting that is taken, in bytes, from 1.
   *
   * @default {65536}
   */
  maxGreetingBytes?: number;
  /** Aborting it ends the exchange, which rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Called with the server's address once the connection is established. */
  onConnect?: (server: Deno.NetAddr) => void;
  /** Called with the greeting before the reply is sent. */
  onGreeting?: (greeting: string) => void;
}

/**
 * Connects, reads the greeting, sends the reply and closes.
 *
 * @example Wait for a server that is about to start
 * ```ts
 * import { exchange } from "./client.ts";
 *
 * const greeting = await exchange({ port: 9000, wait: 5_000 });
 * ```
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
  const settings = settingsOf(options);
  settings.signal?.throwIfAborted();
  using deadline = new Deadline(settings);
  try {
    return await converse(await connect(settings, deadline), settings);
  } catch (error) {
    // What ended the exchange is the deadline or the signal, if it was either,
    // and not the error of the call that was under way.
    deadline.signal.throwIfAborted();
    throw error;
  }
}

/** 2. Connect, and try again while nothing listens there and time is left. */
async function connect(
  { hostname, port, wait }: Settings,
  deadline: Deadline,
): Promise<Deno.TcpConn> {
  const { signal } = deadline;
  const waitEnds = performance.now() + wait;
  for (;;) {
    deadline.start();
    try {
      const connection = await Deno.connect({ hostname, port, signal });
      deadline.closes(connection);
      return connection;
    } catch (error) {
      // Refused: nothing listens there, or not yet. Only this can be waited
      // for, and nothing tells when it is over but another try.
      const refused = error instanceof Deno.errors.ConnectionRefused;
      if (!refused || performance.now() >= waitEnds) throw error;
    }
    deadline.stop();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** What ends an exchange early: its time is up, or the caller aborts it. */
class Deadline implements Disposable {
  readonly #controller = new AbortController();
  readonly #settings: Settings;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(settings: Settings) {
    this.#settings = settings;
    settings.signal?.addEventListener("abort", this.#abort);
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  readonly #abort = () => {
    this.#controller.abort(this.#settings.signal?.reason);
  };

  start(): void {
    const { timeout } = this.#settings;
    if (timeout === Infinity) return; // A timer would take it for 0.
    this.#timer = setTimeout(() => {
      this.#controller.abort(new Deno.errors.TimedOut("too late"));
    }, timeout);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  /**
   * From now on, closes the connection. That makes the pending read or write
   * reject: without it, a server that falls silent would hold the client for
   * good.
   */
  closes(connection: Deno.TcpConn): void {
    // Not `close()`, which throws where the exchange has closed it already.
    this.signal.onabort = () => connection[Symbol.dispose]();
    if (!this.signal.aborted) return;
    connection.close();
    this.signal.throwIfAborted();
  }

  [Symbol.dispose](): void {
    this.stop();
    this.#settings.signal?.removeEventListener("abort", this.#abort);
  }
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  reply: "你好服務器",
  timeout: 10_000, // milliseconds
  wait: 0, // milliseconds
  maxGreetingBytes: 64 * 1024,
};

/** The options, checked, with the default for each that is left out. */
function settingsOf(options: ExchangeOptions) {
  const {
    hostname = DEFAULTS.hostname,
    port = DEFAULTS.port,
    reply = DEFAULTS.reply,
    timeout = DEFAULTS.timeout,
    wait = DEFAULTS.wait,
    maxGreetingBytes = DEFAULTS.maxGreetingBytes,
    ...others
  } = options;
  checkText("hostname", hostname, 1);
  checkWhole("port", port, 1, 65_535);
  checkText("reply", reply, 1);
  if (timeout !== Infinity) checkTime("timeout", timeout, "above 0");
  checkTime("wait", wait, "from 0");
  checkWhole("maxGreetingBytes", maxGreetingBytes, 1);
  return { hostname, port, reply, timeout, wait, maxGreetingBytes, ...others };
}

type Settings = ReturnType<typeof settingsOf>;

// The command

const HELP = `Connects to a TCP server, reads its greeting and sends a reply.

usage: deno run --allow-net client.ts [flags]

  --host HOST        the server's address (${DEFAULTS.hostname})
  --port, -p PORT    the server's port (${DEFAULTS.port})
  --reply TEXT       what the server is sent (${DEFAULTS.reply})
  --timeout SECONDS  for the whole exchange, connecting included (${
  DEFAULTS.timeout / 1000
})
  --wait SECONDS     how long to keep trying while refused (${
  DEFAULTS.wait / 1000
})
  --quiet, -q        print the greeting alone (off)
  --help, -h         show this help (off)

example: deno run --allow-net client.ts --port 9000 --reply "Hello, server"`;

/**
 * The command, all but `Deno.exit`: does one exchange and prints it.
 *
 * @example Reply to a server on another port
 * ```ts
 * import { main } from "./client.ts";
 *
 * const code = await main(["--port", "9000", "--reply", "Hello, server"]);
 * ```
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 done, 1 could not be done, 2 the command line is
 * wrong.
 */
export async function main(args: string[]): Promise<number> {
  const flags = commandLine(args, parse, HELP);
  if (typeof flags === "number") return flags;
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

/** Reads the flags, as {@linkcode commandLine} wants it. */
function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    reply: DEFAULTS.reply,
    timeout: `${DEFAULTS.timeout / 1000}`,
    wait: `${DEFAULTS.wait / 1000}`,
  }, ["quiet"]);
  if (flags === undefined) return undefined;
  const { host: hostname, reply, quiet } = flags;
  const port = wholeNumber(flags.port);
  const timeout = milliseconds(flags.timeout);
  const wait = milliseconds(flags.wait);
  checkWhole("--port", port, 1, 65_535, flags.port);
  checkTime("--timeout", timeout, "above 0", flags.timeout);
  checkTime("--wait", wait, "from 0", flags.wait);
  return { hostname, port, reply, timeout, wait, quiet };
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
    return `${server} sent a greeting longer than ${DEFAULTS.maxGreetingBytes} bytes`;
  }
  if (error instanceof Deno.errors.NotCapable) {
    return `no permission to connect to ${server}; run with --allow-net=${server}`;
  }
  return `cannot reach ${server}: ${error.message}`;
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
