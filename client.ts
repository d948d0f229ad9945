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
 * The exchange with the server, steps 3 to 6. Before it, the server listens (1)
 * and `connect` connects (2). Resolves to the greeting.
 */
async function converse(
  connection: Deno.TcpConn,
  { reply, maxGreetingBytes, onConnect, onGreeting }: Settings,
  deadline: Deadline,
): Promise<string> {
  using _ = connection; // 6. Close: at the end of this block, on every path.
  await onConnect?.(connection.remoteAddr);
  // 3. Read the greeting, 4. to its end: there the server has half-closed.
  const greeting = await receive(connection, maxGreetingBytes, deadline);
  if (greeting === "") throw new Deno.errors.UnexpectedEof("no greeting");
  await onGreeting?.(greeting);
  await send(connection, encoder.encode(reply)); // 5. Reply.
  return greeting;
}

/**
 * Options of {@linkcode exchange}, which awaits the promises that its callbacks
 * return, and rejects with what they throw or reject with. `timeout` runs on
 * meanwhile.
 */
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
   * The longest greeting that is taken, in bytes, from 1 to 536870888.
   *
   * @default {65536}
   */
  maxGreetingBytes?: number;
  /** Aborting it ends the exchange, which rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Called with the server's address once the connection is established. */
  onConnect?: (server: Deno.NetAddr) => void | Promise<void>;
  /** Called with the greeting before the reply is sent. */
  onGreeting?: (greeting: string) => void | Promise<void>;
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
 * @throws {TypeError} If `hostname` or `reply` is empty, or not a string.
 * @throws {Deno.errors.TimedOut} If the time was up.
 * @throws {Deno.errors.UnexpectedEof} If the server closed without a greeting.
 * @throws {Deno.errors.InvalidData} If the greeting was too long.
 * @throws {Error} What `Deno.connect`, the connection or a callback throws,
 * such as `Deno.errors.ConnectionRefused`, and the reason of an aborted `signal`.
 */
export async function exchange(options: ExchangeOptions = {}): Promise<string> {
  return await withServer(options, converse);
}

/** Connects, and does what is to be done while there is time. */
async function withServer(
  options: ExchangeOptions,
  use: typeof converse,
): Promise<string> {
  const settings = settingsOf(options);
  settings.signal?.throwIfAborted();
  await using deadline = new Deadline(settings);
  try {
    const connection = await connect(settings, deadline);
    return await use(connection, settings, deadline);
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
      if (!isSelfConnect(connection)) return deadline.guard(connection);
      connection.close();
      throw new Deno.errors.ConnectionRefused("connected to itself");
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

/**
 * Where nothing listens on a port that Linux gives to clients, it may give a
 * client that very port, and so connect it to itself.
 */
function isSelfConnect({ localAddr, remoteAddr }: Deno.TcpConn): boolean {
  return localAddr.port === remoteAddr.port &&
    localAddr.hostname === remoteAddr.hostname;
}

/** What ends an exchange early: its time is up, or the caller aborts it. */
class Deadline implements AsyncDisposable {
  /** How often the server was read from. */
  reads = 0;
  readonly #controller = new AbortController();
  readonly signal = this.#controller.signal;
  readonly #settings: Settings;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #ending: Promise<void> | undefined;
  #stopped = false;

  readonly #abort = () => this.#controller.abort(this.#settings.signal?.reason);

  constructor(settings: Settings) {
    this.#settings = settings;
    settings.signal?.addEventListener("abort", this.#abort);
  }

  start(): void {
    const { timeout } = this.#settings;
    if (timeout === Infinity) return; // A timer would take it for 0.
    this.#stopped = false;
    const due = performance.now() + timeout;
    this.#timer = setTimeout(() => this.#ending = this.#end(due), timeout);
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  async #end(due: number): Promise<void> {
    // The timer is late: the process stood still, or a callback kept it busy.
    // A greeting may have arrived meanwhile, and is read before the time is up.
    if (performance.now() - due > 20) {
      await untilIdle(50, () => this.#stopped ? undefined : this.reads);
    }
    if (this.#stopped) return;
    this.#controller.abort(new Deno.errors.TimedOut("too late"));
  }

  /**
   * From now on, closes the connection. That makes the pending read or write
   * reject: without it, a server that falls silent would hold the client for
   * good.
   */
  guard(connection: Deno.TcpConn): Deno.TcpConn {
    // Not `close()`, which throws where the exchange has closed it already.
    this.signal.onabort = () => connection[Symbol.dispose]();
    if (this.signal.aborted) connection.close();
    this.signal.throwIfAborted();
    return connection;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop();
    this.#settings.signal?.removeEventListener("abort", this.#abort);
    await this.#ending;
  }
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  reply: "你好服務器",
  timeout: 10_000, // milliseconds
  wait: 0, // milliseconds
};

/** The options, checked, with the default for each that is left out. */
function settingsOf(options: ExchangeOptions) {
  const {
    hostname = DEFAULTS.hostname,
    port = DEFAULTS.port,
    reply = DEFAULTS.reply,
    timeout = DEFAULTS.timeout,
    wait = DEFAULTS.wait,
    maxGreetingBytes = MAX_TEXT_BYTES,
    ...others
  } = options;
  checkText("hostname", hostname, 1);
  checkWhole("port", port, 1, 65_535);
  checkText("reply", reply, 1);
  if (timeout !== Infinity) checkTime("timeout", timeout, "above 0");
  checkTime("wait", wait, "from 0");
  checkWhole("maxGreetingBytes", maxGreetingBytes, 1, MAX_STRING_BYTES);
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
  --talk             go on line by line from stdin (off)
  --quiet, -q        print only what comes from the server (off)
  --help, -h         show this help (off)

example: deno run --allow-net client.ts --port 9000 --reply "Hello, server"`;

/**
 * Runs the command: does one exchange and prints it.
 *
 * @example Reply to a server on another port
 * ```ts
 * import { main } from "./client.ts";
 *
 * const code = await main(["--port", "9000", "--reply", "Hello, server"]);
 * ```
 *
 * @param args The command line, such as `Deno.args`.
 * @returns The exit code: 0 success, 1 failure, 2 wrong command line.
 */
export async function main(args: string[]): Promise<number> {
  const out = new LineWriter();
  const flags = await commandLine(args, parse, HELP, out);
  return typeof flags === "number" ? flags : await run(flags, out);
}

async function run(flags: Flags, out: LineWriter): Promise<number> {
  const { talk: isTalk, quiet, ...options } = flags;
  // Not awaited: a reader of the lines that stalls must not cost the exchange.
  const print = (line: string) => void (quiet || out.write(line));
  const settings: ExchangeOptions = {
    ...options,
    onConnect: (server) => print(`Connected to ${format(server)}`),
    onGreeting: (greeting) =>
      void out.write(`${quiet ? "" : "Greeting: "}${printable(greeting)}`),
  };
  const onReplied = () => print(`Replied: ${printable(options.reply)}`);
  try {
    if (isTalk) await talkTo(settings, quiet, onReplied, out);
    else {
      await exchange(settings);
      onReplied();
    }
  } catch (error) {
    await out.written; // An error comes after the lines.
    fail(explain(error as Error, format(options)));
    return 1;
  }
  await out.written;
  return printed(out);
}

/** The exchange as a talk, in which a message ends with its line. */
function talkTo(
  options: ExchangeOptions,
  quiet: boolean,
  onReplied: () => void,
  out: LineWriter,
): Promise<string> {
  return withServer(options, async (connection, settings, deadline) => {
    using _ = connection;
    const address = format(connection.remoteAddr);
    const show = async (line: string) => {
      await out.write(`${quiet ? "" : `${address}: `}${printable(line)}`);
      return out.failure === undefined;
    };
    await settings.onConnect?.(connection.remoteAddr);
    const lines = new LineReader(connection);
    const [greeting, ...more] = await readGreeting(lines);
    await settings.onGreeting?.(greeting);
    deadline.stop(); // A talk lasts as long as it lasts.
    await send(connection, encoder.encode(`${settings.reply}\n`));
    onReplied();
    await out.written;
    more.forEach(show);
    await out.written;
    await talk(connection, lines, {
      show,
      onEnded: () => void (quiet || out.write(`${address} ended`)),
      hangUp: new AbortController(),
    });
    return greeting;
  });
}

/** Reads the greeting's line, and what came with it. */
async function readGreeting(lines: LineReader): Promise<[string, ...string[]]> {
  for (;;) {
    const some = await lines.read();
    if (some === null) throw new Deno.errors.UnexpectedEof("no greeting");
    const [greeting, ...more] = some;
    if (greeting === undefined) continue;
    if (lines.isCut) throw new Deno.errors.InvalidData("too long");
    return [greeting, ...more];
  }
}

/** Reads the flags, as {@linkcode commandLine} wants it. */
function parse(args: string[]) {
  const flags = parseFlags(args, {
    host: DEFAULTS.hostname,
    port: `${DEFAULTS.port}`,
    reply: DEFAULTS.reply,
    timeout: `${DEFAULTS.timeout / 1000}`,
    wait: `${DEFAULTS.wait / 1000}`,
  }, ["talk", "quiet"]);
  if (flags === undefined) return undefined;
  const { host: hostname, reply, talk, quiet } = flags;
  const port = wholeNumber(flags.port);
  const timeout = milliseconds(flags.timeout);
  const wait = milliseconds(flags.wait);
  checkWhole("--port", port, 1, 65_535, flags.port);
  checkLength("--reply", reply);
  checkTime("--timeout", timeout, "above 0", flags.timeout);
  checkTime("--wait", wait, "from 0", flags.wait);
  return { hostname, port, reply, timeout, wait, talk, quiet };
}

type Flags = NonNullable<ReturnType<typeof parse>>;

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
    error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.NotConnected
  ) return `${server} reset the connection`;
  if (error instanceof Deno.errors.UnexpectedEof) {
    return `${server} closed without a greeting`;
  }
  if (error instanceof Deno.errors.InvalidData) {
    return `${server} sent a greeting longer than ${MAX_TEXT_BYTES} bytes`;
  }
  if (error instanceof Deno.errors.NotCapable) {
    return `no permission to connect to ${server}; run with --allow-net=${server}`;
  }
  return `cannot reach ${server}: ${error.message}`;
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
