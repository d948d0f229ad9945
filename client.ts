#!/usr/bin/env -S deno run --allow-net
/**
 * A TCP client: it connects to a server, reads its greeting, sends a reply, and
 * closes. Steps 2 to 6 stand in {@linkcode exchange}; step 1, to listen, is the
 * server's. As a command: `deno run --allow-net client.ts`.
 *
 * For a protocol of your own, take `Peer` from `server.ts`.
 *
 * @module
 */

/**
 * The exchange with the server, steps 2 to 6. Resolves to the greeting.
 *
 * ```ts
 * import { exchange, printable } from "./client.ts";
 *
 * const greeting = await exchange({ port: 8888, reply: "hello" });
 * console.log(printable(greeting)); // on one line
 * ```
 *
 * The greeting ends where the server closes or half-closes. It counts as whole, too,
 * where nothing more has come for two seconds after a part of it. What the server
 * sends after the reply is dropped.
 *
 * @throws {RangeError} If `timeout` is no number above 0.
 * @throws {DOMException} Named `TimeoutError`, if the server took too long.
 * @throws {Deno.errors.UnexpectedEof} If the server ended without a greeting.
 * @throws {Deno.errors.InvalidData} If the greeting is longer than 65,536 bytes.
 * @throws {Error} What else kept it from connecting, or ended the connection. An
 * error in reading the greeting has a `soFar`: the text of it that had come.
 */
export async function exchange(options: ExchangeOptions = {}): Promise<string> {
  const { hostname = DEFAULTS.host, port = DEFAULTS.port } = options;
  const { reply = DEFAULTS.reply, timeout = 1000 * DEFAULTS.timeout } = options;
  using time = timeOfServer(timeout);

  // 2. Connect. `using` closes at the end, as Python's `with` does.
  const connecting = Deno.connect({ hostname, port, signal: time.over });
  // Where it connects just as the time is up, nobody else closes it.
  connecting.then((late) => time.over.aborted && late.close(), () => {});
  using connection = await time.wait(connecting);
  // Linux connects a client to itself where nothing listens on its own port.
  if (format(connection.localAddr) === format(connection.remoteAddr)) {
    throw new Deno.errors.ConnectionRefused("connected to itself");
  }
  await options.onConnect?.(connection.remoteAddr);

  // 3. Read the greeting, 4. to its end: there the server has half-closed.
  const { greeting, isWhole } = await readGreeting(connection, time);
  await options.onGreeting?.(greeting, isWhole);

  // 5. Reply.
  await time.wait(writeAll(connection, reply));

  // 6. Close. With unread input, a close is a reset, and can cost the server the
  // reply. So half-close, and drop what still comes, for a second at most. An error
  // is no failure any more: a server that has closed answers a reply with a reset.
  await time.wait(halfCloseAndDrop(connection), 1_000).catch(() => {});
  return greeting; // `using` closes here, and on every error.
}

/** Options of {@linkcode exchange}. */
export interface ExchangeOptions {
  /** The server's address, or a name of it: 127.0.0.1 by default. */
  hostname?: string | undefined;
  /** The server's port, 8888 by default. */
  port?: number | undefined;
  /** What the server is sent: `你好服務器` by default. */
  reply?: string | undefined;
  /**
   * Milliseconds that the server may take in all: 10,000 by default, or `Infinity`.
   * The end comes up to 100 ms later. What does not count is the time that the
   * callbacks take, and a standstill of the program, such as after Ctrl-Z.
   */
  timeout?: number | undefined;
  /** Called, and waited for, when it is connected, with the server's address. */
  onConnect?: ((server: Deno.NetAddr) => unknown) | undefined;
  /**
   * Called, and waited for, with the greeting, before the reply. `isWhole` is false
   * where the server has not ended it, but has been silent for two seconds.
   */
  onGreeting?: ((greeting: string, isWhole: boolean) => unknown) | undefined;
}

const LONGEST = 65_536; // bytes of a greeting, as a server may send any number
const DEFAULTS = { // of the options, and of the flags
  host: "127.0.0.1",
  port: 8888,
  reply: "你好服務器",
  timeout: 10, // seconds
};

/** Reads until the server ends, or falls silent: one read is not one message. */
async function readGreeting(
  connection: Deno.Conn,
  time: ReturnType<typeof timeOfServer>,
) {
  const buffer = new Uint8Array(LONGEST + 1); // one more, to see that it is too long
  let length = 0; // of what has come
  // Without `ignoreBOM`, a text would lose the U+FEFF that it may begin with.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const soFar = () => decoder.decode(buffer.subarray(0, length));
  try {
    for (;;) {
      const reading = connection.read(buffer.subarray(length));
      const count = await time.wait(reading, length > 0 ? 2_000 : Infinity);
      if (count === null) break; // where Python's `recv` gives b""
      length += count;
      if (length > LONGEST) throw new Deno.errors.InvalidData("too long");
    }
    if (length === 0) throw new Deno.errors.UnexpectedEof("no greeting");
    return { greeting: soFar(), isWhole: true };
  } catch (error) {
    if (error === SILENCE) return { greeting: soFar(), isWhole: false };
    throw Object.assign(error as Error, { soFar: soFar() });
  }
}

/** A read of the greeting may be pending: what comes first goes to it. */
async function halfCloseAndDrop(connection: Deno.Conn): Promise<void> {
  await connection.closeWrite();
  const dropped = new Uint8Array(4096);
  while (await connection.read(dropped) !== null);
}

const SILENCE = Symbol("silence"); // where a wait is over, but not the whole time

/**
 * The server's time, which runs while the server is waited for. It is counted in
 * looks, 50 ms apart: a standstill (Ctrl-Z, a paused container) is one late look.
 */
function timeOfServer(timeout: number) {
  if (!(typeof timeout === "number" && timeout > 0)) {
    throw new RangeError(`timeout is no number above 0: ${timeout}`);
  }
  let looksLeft = timeout / 50 + 1; // one more, as the first may come at once
  let look = () => {}; // set while the server is waited for
  const timer = setInterval(() => look(), 50);
  const over = new AbortController();

  /** Gives what the promise gives, if that comes within so many milliseconds. */
  async function wait<T>(promise: Promise<T>, most = Infinity): Promise<T> {
    const late = Promise.withResolvers<never>();
    const timeIsUp = new DOMException("time is up", "TimeoutError");
    let looksLeftHere = most / 50 + 1;
    look = () => {
      const isUp = --looksLeft <= 0;
      if (--looksLeftHere > 0 && !isUp) return;
      // One turn later: after a standstill, what has come is read first.
      setTimeout(() => {
        late.reject(isUp ? timeIsUp : SILENCE);
        if (isUp) over.abort(); // What connects only now is closed.
      }, 0);
    };
    return await Promise.race([promise, late.promise])
      .finally(() => look = () => {});
  }

  const dispose = () => {
    clearInterval(timer); // It would hold the program.
    over.abort();
  };
  return { wait, over: over.signal, [Symbol.dispose]: dispose };
}

// The command

const SCRIPT = "client.ts";
const FLAGS = { ...DEFAULTS, wait: 0, quiet: false, help: false };
type Name = keyof typeof FLAGS;
const HELP = `Connects to a TCP server, reads its greeting and sends a reply.

usage: deno run --allow-net client.ts [flags]

  --host HOST        the server's address (${FLAGS.host})
  --port, -p PORT    the server's port (${FLAGS.port})
  --reply TEXT       what the server is sent (${FLAGS.reply})
  --timeout SECONDS  that the server may take in all (${FLAGS.timeout})
  --wait SECONDS     for trying again to connect (${FLAGS.wait})
  --quiet, -q        print only what comes from the server (off)
  --help, -h         show this help (off)`;

/** Runs the command. Gives 0 for success, 1 for failure, 2 for wrong flags. */
export async function main(args: string[]): Promise<number> {
  try {
    const flags = await readFlags(args);
    await (flags.isOn("help") ? print(HELP) : run(flags));
    return 0;
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    await report(`error: ${error.message}`);
    return error.code;
  }
}

/** Prints a line, which can fail, such as on a full disk. */
async function print(line: string): Promise<void> {
  await writeAll(Deno.stdout, `${line}\n`).catch((error) => {
    throw new Failure(`cannot print: ${error.message}`);
  });
}

const NOT_ENDED =
  "note: the server did not end its greeting (it neither closed nor half-closed); after two seconds of silence it counts as whole";

/** Has the exchange. Until it is connected, tries again for `--wait`. */
async function run(flags: Flags): Promise<void> {
  const wait = 1000 * flags.number("wait", "number", 0, 2_147_483);
  const waitEnds = performance.now() + wait;
  const quiet = flags.isOn("quiet");
  let isConnected = false;
  const options = {
    hostname: flags.text("host").replace(/^\[(.*)\]$/, "$1"), // as a URL has it
    port: flags.number("port", "whole number", 1, 65_535),
    reply: flags.text("reply"),
    timeout: 1000 * flags.number("timeout", "number", 0.001, 2_147_483),
    onConnect: async (server: Deno.NetAddr) => {
      isConnected = true;
      if (!quiet) await print(`Connected to ${format(server)}`);
    },
    onGreeting: async (greeting: string, isWhole: boolean) => {
      await print(`${quiet ? "" : "Greeting: "}${shown(greeting)}`);
      if (!isWhole) await report(NOT_ENDED);
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
      const lasting = [Deno.errors.NotCapable, TypeError, RangeError, URIError];
      const isLasting = lasting.some((type) => error instanceof type);
      if (isConnected || isLasting || performance.now() >= waitEnds) {
        const server = format(options);
        throw new Failure(explain(error as Error, server, isConnected));
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Says what kept it from connecting, or what ended the exchange. */
function explain(error: Error, server: string, isConnected: boolean): string {
  const soFar = "soFar" in error ? `${error.soFar}` : undefined; // of a greeting
  const hint = addressHint(server);
  switch (error.name) {
    case "TimeoutError":
      if (soFar) {
        return `the greeting of ${server} has not ended in time: it ends when the server closes, half-closes, or is silent for two seconds; so far it is: ${
          shown(soFar)
        }`;
      }
      return soFar === ""
        ? `${server} sent nothing in time; it may wait for the client to speak first`
        : `${server} took too long; give it more time with --timeout SECONDS`;
    case "ConnectionRefused":
      return `nothing listens on ${server}; start the server, or use --wait SECONDS${hint}`;
    case "NotCapable":
      return `no permission to connect to ${server}; run with --allow-net=${server}`;
    case "UnexpectedEof":
      return `${server} closed without a greeting`;
    case "InvalidData":
      return `${server} sent a greeting longer than ${LONGEST} bytes`;
  }
  const code = "code" in error ? error.code : undefined; // of the system
  if (isConnected && !code) throw error; // It is a mistake of this script.
  if (isConnected) return `${server} reset the connection`;
  return code === "EHOSTUNREACH"
    ? `cannot reach ${server}: ${error.message}; it may be a firewall, or on macOS the permission for the local network`
    : `cannot reach ${server}: ${error.message}`;
}

/** What else a refusal may mean. */
function addressHint(server: string): string {
  if (server.startsWith("localhost:")) return ""; // All its addresses were tried.
  return /^(127\.|\[::1\])/.test(server)
    ? "; ::1 and 127.0.0.1 are two addresses: --host localhost tries both, where the system knows both"
    : "; or it listens on another address: see its --host";
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
