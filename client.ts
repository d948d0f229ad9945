#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP client: it connects to a server, reads the server's greeting to its end,
 * sends a reply, and closes. Its steps 2 to 6 stand in {@linkcode exchange}; step 1,
 * to listen, is the server's.
 *
 * As a command: `deno run --allow-net client.ts`. For a protocol of your own, take
 * `withSession` from `server.ts`.
 *
 * @module
 */

/**
 * The exchange with the server, steps 2 to 6. Resolves to the greeting.
 *
 * @throws {DOMException} Named `TimeoutError`, if the time was up.
 * @throws {Deno.errors.UnexpectedEof} If the server ended without a greeting.
 * @throws {Deno.errors.InvalidData} If the greeting is longer than 65,536 bytes.
 * @throws {Error} What else kept it from connecting, or ended the connection.
 */
export async function exchange(options: ExchangeOptions = {}): Promise<string> {
  const { hostname, port, reply, timeout } = { ...DEFAULTS, ...options };
  return await withinTime(timeout, async (timeIsUp) => {
    // 2. Connect. `using` closes at the end, as Python's `with` does.
    using connection = await Deno.connect({ hostname, port, signal: timeIsUp });
    closeWhen(timeIsUp, connection);
    refuseItself(connection);
    await options.onConnect?.(connection.remoteAddr);

    // 3. Read the greeting, 4. to its end: there the server has half-closed.
    const greeting = await readToEnd(connection, options.onRead);
    await options.onGreeting?.(greeting);

    // 5. Reply. It ends with the close.
    await sendAll(connection, reply);

    // 6. Close: `using` does it here, and after any error.
    return greeting;
  });
}

/** Reads until the server ends: one read is not one message. */
async function readToEnd(
  connection: Deno.Conn,
  onRead?: (part: Uint8Array) => void,
): Promise<string> {
  const buffer = new Uint8Array(MOST + 1); // one more, to see that it is too long
  let length = 0; // of what has come
  for (;;) {
    const count = await connection.read(buffer.subarray(length));
    if (count === null) break; // where Python's `recv` gives b""
    length += count;
    if (length > MOST) throw new Deno.errors.InvalidData("too long a greeting");
    onRead?.(buffer.subarray(0, length));
  }
  if (length === 0) throw new Deno.errors.UnexpectedEof("no greeting");
  return decoder.decode(buffer.subarray(0, length));
}

/** Sends all of the text, in UTF-8: one write may take only a part. */
async function sendAll(writer: Pick<Deno.Conn, "write">, text: string) {
  let rest = new TextEncoder().encode(text);
  while (rest.length > 0) rest = rest.subarray(await writer.write(rest));
}

/** Gives the steps a signal that is aborted when their time, in ms, is up. */
async function withinTime(
  timeout: number,
  steps: (timeIsUp: AbortSignal) => Promise<string>,
): Promise<string> {
  const cut = new AbortController();
  const cutOff = () =>
    cut.abort(new DOMException("time is up", "TimeoutError"));
  // After a standstill (Ctrl-Z, a paused container), what has come is read first.
  let timer = setTimeout(() => void (timer = setTimeout(cutOff, 50)), timeout);
  try {
    return await steps(cut.signal);
  } catch (error) {
    const { BadResource, Interrupted } = Deno.errors; // after the close
    const isCut = error instanceof BadResource || error instanceof Interrupted;
    throw cut.signal.aborted && isCut ? cut.signal.reason : error;
  } finally {
    clearTimeout(timer); // `AbortSignal.timeout` would hold the program.
  }
}

/** Closes when the time is up: a pending read or write then rejects. */
function closeWhen(timeIsUp: AbortSignal, connection: Deno.Conn): void {
  timeIsUp.throwIfAborted(); // just as it connected
  timeIsUp.onabort = () => connection[Symbol.dispose]();
}

/** Linux connects a client to itself where nothing listens on its own port. */
function refuseItself({ localAddr, remoteAddr }: Deno.TcpConn): void {
  if (format(localAddr) !== format(remoteAddr)) return;
  throw new Deno.errors.ConnectionRefused("connected to itself");
}

/** Options of {@linkcode exchange}. */
export interface ExchangeOptions {
  /** The server's address, or a name of it: 127.0.0.1 by default. */
  hostname?: string;
  /** The server's port, 8888 by default. */
  port?: number;
  /** What the server is sent: `你好服務器` by default. */
  reply?: string;
  /** Milliseconds for all of it, 10,000 by default, below 2 ** 31. */
  timeout?: number;
  /** Called, and waited for, when it is connected, with the server's address. */
  onConnect?: (server: Deno.NetAddr) => unknown;
  /** Called with what has come of the greeting so far. */
  onRead?: (part: Uint8Array) => void;
  /** Called, and waited for, with the whole greeting, before the reply. */
  onGreeting?: (greeting: string) => unknown;
}

const DEFAULTS = {
  hostname: "127.0.0.1",
  port: 8888,
  reply: "你好服務器",
  timeout: 10_000, // milliseconds
};
const MOST = 65_536; // bytes of a greeting, as a server may send any number

// Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

// The command

const SCRIPT = "client.ts";
const HELP = `Connects to a TCP server, reads its greeting and sends a reply.

usage: deno run --allow-net client.ts [flags]

  --host HOST        the server's address (${DEFAULTS.hostname})
  --port, -p PORT    the server's port (${DEFAULTS.port})
  --reply TEXT       what the server is sent (${DEFAULTS.reply})
  --timeout SECONDS  for the whole exchange (${DEFAULTS.timeout / 1000})
  --wait SECONDS     for trying again to connect (0)
  --quiet, -q        print only what comes from the server (off)
  --help, -h         show this help (off)`;

/** Runs the command. Gives 0 for success, 1 for failure, 2 for wrong flags. */
export async function main(args: string[]): Promise<number> {
  try {
    const flags = await readFlags(args, {
      host: DEFAULTS.hostname,
      port: DEFAULTS.port,
      reply: DEFAULTS.reply,
      timeout: DEFAULTS.timeout / 1000,
      wait: 0,
    }, ["quiet", "help"]);
    await (flags.isOn("help") ? print(HELP) : run(flags));
    return 0;
  } catch (error) {
    return await reportFailure(error);
  }
}

/** Prints a line, which can fail, such as on a full disk. */
async function print(line: string): Promise<void> {
  await sendAll(Deno.stdout, `${line}\n`).catch((error) => {
    throw new Failure(`cannot print: ${error.message}`);
  });
}

/** Has the exchange. Until it is connected, tries again for `--wait`. */
async function run(flags: Flags): Promise<void> {
  const most = 2_147_483; // seconds, as far as a timer goes
  const wait = 1000 * flags.number("wait", "number", 0, most);
  const waitEnds = performance.now() + wait;
  const quiet = flags.isOn("quiet");
  let part: Uint8Array | undefined; // of the greeting, once it is connected
  const options = {
    hostname: flags.host(),
    port: flags.number("port", "whole number", 1, 65_535),
    reply: flags.text("reply"),
    timeout: 1000 * flags.number("timeout", "number", 0.001, most),
    onConnect: async (server: Deno.NetAddr) => {
      part = new Uint8Array();
      if (!quiet) await print(`Connected to ${format(server)}`);
    },
    onRead: (read: Uint8Array) => part = read,
    onGreeting: async (greeting: string) => {
      part = new Uint8Array();
      await print(`${quiet ? "" : "Greeting: "}${shown(greeting)}`);
    },
  };
  for (;;) {
    try {
      await exchange(options);
      if (!quiet) await print(`Replied: ${shown(options.reply)}`);
      return;
    } catch (error) {
      if (error instanceof Failure) throw error; // It could not print.
      // Without the permission, or with wrong arguments, no other try helps.
      const final = [Deno.errors.NotCapable, TypeError, RangeError, URIError];
      const isFinal = part || final.some((type) => error instanceof type);
      if (isFinal || performance.now() >= waitEnds) {
        throw new Failure(explain(error as Error, format(options), part));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Says what kept it from connecting or, with a `part`, what ended the exchange. */
function explain(error: Error, server: string, part?: Uint8Array): string {
  if (error instanceof DOMException) {
    const text = shown(decoder.decode(part));
    return text
      ? `the greeting of ${server} has not ended: it ends when the server closes, or half-closes; so far it is: ${text}`
      : `${server} took too long; give it more time with --timeout SECONDS`;
  }
  const isHere = /^(127\.|\[::1\]|localhost:)/.test(server);
  const hint = isHere
    ? ""
    : "; or it listens on another address: see its --host";
  switch (error.name) {
    case "ConnectionRefused":
      return `nothing listens on ${server}; start the server, or use --wait SECONDS${hint}`;
    case "NotCapable":
      return `no permission to connect to ${server}; run with --allow-net=${server}`;
    case "UnexpectedEof":
      return `${server} closed without a greeting`;
    case "InvalidData":
      return `${server} sent a greeting longer than ${MOST} bytes`;
  }
  if (!part) return `cannot reach ${server}: ${error.message}`;
  // Without a code of the system, it is a mistake of this script.
  return "code" in error
    ? `${server} reset the connection`
    : Deno.inspect(error);
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
