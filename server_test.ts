/**
 * What `server.ts` and `client.ts` promise: one rule a test, in the order in which
 * they stand in `server.ts`, then those of `client.ts`, then what both have. What only
 * processes show has its tests in `.ci/gate.ts`.
 *
 * A `net.test` has real sockets, on the loopback; it is ignored without the
 * permission. A `Deno.test` has none. A test waits two seconds at most, so that a
 * broken rule fails its own tests and no others: what is awaited comes `inTime`, or
 * is so `until` then.
 *
 * Helpers come last. The main ones:
 *
 * - `fake()`: a connection without a socket, which notes its calls in `events`
 * - `listenerOf([…])`: a listener that gives these connections, one by one
 * - `start(options, given?)`: a server, with those that it `accepted`, and what its
 *   `onError` was `told`
 * - `connected()`: both ends of a connection, `here` and `there`; `withPeer()`: a
 *   `Peer` over there beside, and a clock
 * - `fakeClock()`: time that passes where a test says so
 * - `run("server.ts --once")`: a command, with the lines of its `out` and `err`
 *
 * To run: `deno test --allow-net`.
 *
 * @module
 */

import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { getEventListeners, once } from "node:events";
import { connect as connectNode } from "node:net";
import { cpuUsage } from "node:process";
import { setTimeout as nodeTimeout } from "node:timers/promises";
import * as client from "./client.ts";
import { exchange, type ExchangeOptions } from "./client.ts";
import textOfClient from "./client.ts" with { type: "text" };
import * as server from "./server.ts";
import { greet, onStopSignal, Peer, printable } from "./server.ts";
import { serve, showError } from "./server.ts";
import type { PeerOptions, ServeOptions } from "./server.ts";
import textOfServer from "./server.ts" with { type: "text" };

const { BadResource, BrokenPipe, ConnectionRefused } = Deno.errors;
const { ConnectionReset, Interrupted, InvalidData } = Deno.errors;
const { UnexpectedEof } = Deno.errors;

const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const TEXT = "你好,客戶端 👋🏽";
const LARGEST = "x".repeat(65_536); // of a message
const MORE_THAN_BUFFERS = "x".repeat(10_000_000); // of both ends
const MINE = new TypeError("mine");
const ENOUGH = new Error("enough");
const ONE_IS_LOST = "ConnectionReset ConnectionAborted NotConnected " +
  "ECONNRESET ECONNABORTED ENOTCONN";
const NO_CLIENT = "no client can be accepted for now, still trying";
const STOP_SIGNALS = ["SIGINT", "SIGTERM"];
const setRealTimeout = setTimeout;
const { state } = await Deno.permissions.query({ name: "net" });
const net = { test: state === "granted" ? Deno.test : Deno.test.ignore };

// greet

net.test("greet: the greeting is whole, and ends its half alone", async () => {
  using pair = await connected();
  const replied = greet(new Peer(pair.there), MORE_THAN_BUFFERS);
  assert(await rest(pair.here) === MORE_THAN_BUFFERS);
  await send(pair.here, "still ");
  await end(pair.here, "here");
  assertEquals(await inTime("the reply", replied), "still here");
});

net.test("greet: a client that left before is heard, with a reply or without", async () => {
  for (const reply of ["a reply", ""]) {
    using pair = await connected();
    await end(pair.here, reply);
    pair.here.close();
    const replied = greet(new Peer(pair.there), GREETING);
    assertEquals(await inTime("the reply", replied), reply);
  }
});

net.test("greet: a client that reset has not replied", async () => {
  using listener = listen();
  using peer = await reset(listener, "a reply", accept(listener));
  const replied = inTime("it", greet(new Peer(peer), GREETING));
  await assertRejects(() => replied, ConnectionReset);
});

for (const method of ["write", "closeWrite"]) {
  for (const name of ["BrokenPipe", "NotConnected", "TimedOut", "EPIPE"]) {
    Deno.test(`greet: it reads on if the client is gone (${name} of ${method})`, async () => {
      const peer = new Peer(fake({ ...reads("hi"), ...failing(method, name) }));
      const isGone = name === "BrokenPipe" || name === "NotConnected";
      if (isGone) assertEquals(await greet(peer, GREETING), "hi");
      else await assertRejects(() => greet(peer, GREETING), Error);
    });
  }
}

// serve: where it listens

Deno.test("serve: it listens on 127.0.0.1:8888, or where it is told to", async () => {
  const asked: Deno.TcpListenOptions[] = [];
  const listen = (options: Deno.TcpListenOptions) =>
    asked.push(options) && listenerOf([]);
  using _ = replace(Deno, "listen", listen);
  const told = { hostname: "::1", port: 0, handler: nothing };
  for (const options of [{ handler: nothing }, UNSET, told]) {
    await inTime("the end", serve(options).shutdown());
  }
  const where = asked.map(({ hostname, port }) => `${hostname} ${port}`);
  assertEquals(where, ["127.0.0.1 8888", "127.0.0.1 8888", "::1 0"]);
  assert(asked[0]!.tcpBacklog! > 511, "Deno's default overflows in a burst");
  Deno.listen = () => fail(MINE);
  assertThrows(() => serve(told), TypeError, "mine");
});

/** What is refused, with an error that names it: by a Peer, and by serve, too. */
const WRONG_OPTIONS: Record<string, unknown>[] = [
  ...[0, -1, NaN, "5000", null].map((timeout) => ({ timeout })),
  ...[0, 1.5, NaN, "10", null].map((limit) => ({ limit })),
  { signal: AbortSignal.abort(new RangeError("signal")) },
];
const REFUSED = [
  ...WRONG_OPTIONS,
  ...[undefined, "nothing"].map((handler) => ({ handler })),
  ...[0, 1.5, NaN, "9"].map((maxClients) => ({ maxClients })),
];
for (const wrong of REFUSED) {
  const [[name, value]] = Object.entries(wrong) as [[string, unknown]];
  Deno.test(`serve: it refuses a ${name} of ${value}, and closes a listener`, async () => {
    using _ = replace(Deno, "listen", () => fail(new Error("it listened")));
    const type = name === "handler" ? TypeError : RangeError;
    const options = { handler: nothing, ...wrong } as ServeOptions;
    const listener = listenerOf([]);
    assertThrows(() => serve(options), type, name);
    assertThrows(() => serve({ ...options, listener }), type, name);
    const accepting = inTime("its close", listener.accept());
    await assertRejects(() => accepting, BadResource);
  });
}

Deno.test("serve: types follow the listener; misspelt options are type errors", () => {
  // Never called: `deno check` says where one of these is an error, or is none.
  const types = (tls: Deno.TlsListener, unix: Deno.UnixListener) => {
    const either = tls.addr.port > 0 ? tls : Deno.listen({ port: 0 });
    const overTls = (one: Peer<Deno.TlsConn>) => one.connection.handshake();
    serve(UNSET).addr satisfies Deno.NetAddr;
    serve({ handler: (one) => one.connection.setNoDelay() });
    serve({ listener: tls, handler: (one) => one.connection.handshake() });
    serve({ listener: unix, handler: (one) => one.connection.remoteAddr.path })
      .addr.path;
    serve({ listener: either, handler: (one) => greet(one, "hi") }).addr.port;
    // @ts-expect-error: a TCP connection has no handshake
    serve({ listener: undefined, handler: overTls });
    // @ts-expect-error: one that may be over TLS has no `setNoDelay`
    serve({ listener: either, handler: (one) => one.connection.setNoDelay() });
    // @ts-expect-error: a Unix server has no port
    serve({ listener: unix, handler: nothing }).addr.port;
    // @ts-expect-error: it is `timeout`
    serve({ handler: nothing, timeOut: 1 });
  };
  assertEquals(types.length, 2);
});

// serve: accepting

for (const most of [undefined, 2, Infinity]) {
  Deno.test(`serve: with maxClients ${most}, so many at once are served`, async () => {
    const options = { maxClients: most, handler: untilEnded };
    await using running = start(options, fakes(1_500));
    const { all } = running.accepted;
    await turn();
    const count = Math.min(most ?? 1_024, 1_500);
    assertEquals([running.clients, all.length], [count, count]);
    all[0]!.end(ENOUGH);
    await turn();
    const next = most === Infinity ? [1_499, 1_500] : [count, count + 1];
    assertEquals([running.clients, all.length], next);
  });
}

Deno.test("serve: a handler counts until it settles, also after its end", async () => {
  const go = Promise.withResolvers<void>();
  const options = { maxClients: 1, handler: () => go.promise };
  await using running = start(options, fakes(2));
  const client = await running.accepted.next();
  client.end(ENOUGH);
  await turn();
  assertEquals([running.clients, running.accepted.all.length], [1, 1]);
  go.resolve();
  await running.accepted.next();
});

net.test("serve: a client counts until its close, which waits for its end", async () => {
  using _clock = fakeClock(); // It would be a second at most.
  await using running = start({ maxClients: 1, handler: nothing });
  using one = await dial(running);
  using _two = await dial(running);
  assertEquals(await rest(one), ""); // the half-close
  await send(one, "still here");
  assertEquals([running.clients, running.accepted.all.length], [1, 1]);
  one.close();
  await until("it is served", () => running.accepted.all.length === 2);
});

net.test("serve: a 32nd client that has reset is neither served nor told of", async () => {
  using listener = listen();
  using pair = await connected();
  await end(pair.here, REPLY);
  const lost = () => reset(listener, "x", accept(listener));
  const replies = new Events<string>();
  const handler = async (client: Peer) =>
    replies.push(await greet(client, GREETING));
  using stderr = capture("stderr");
  const given = [...fakes(31), lost, pair.there];
  await using running = start({ handler }, given);
  assertEquals(await rest(pair.here), GREETING);
  assertEquals(await replies.next(), REPLY);
  await until("that is all", () => running.clients === 31);
  assertEquals([running.told(), stderr.all, replies.all], [[], [], [REPLY]]);
});

/** What accepting may fail with: of one client, of the machine, and all else. */
const LOST_ONE = ONE_IS_LOST.split(" ").map(errorNamed);
const SHORT = "EMFILE ENFILE ENOBUFS ENOMEM".split(" ").map(errorNamed);
const OTHERS = [errorNamed("TimedOut"), MINE, "text", null];
for (const error of [...LOST_ONE, ...SHORT, ...OTHERS]) {
  Deno.test(`serve: accepting goes on, with a pause if need be (${error})`, async () => {
    using clock = fakeClock();
    using timer = timers(() => 20);
    using stderr = capture("stderr");
    const times: number[] = [];
    const fails = [0, 59_999, 1].map((milliseconds) => () => {
      times.push(Date.now());
      clock.pass(milliseconds, Infinity);
      return fail(error);
    });
    await using running = start({}, [...fails, fake()]);
    await running.accepted.next();
    const isLost = LOST_ONE.some((one) => one === error);
    assertEquals(timer.delays, isLost ? [] : [100, 100, 100]);
    assert(isLost || times[2]! - times[0]! >= 38, "it waits for the pauses");
    const isOther = OTHERS.includes(error as Error);
    const said = isOther ? error : (error as Error).message;
    const line = `error: ${NO_CLIENT}: ${said}`; // once a minute
    const lines = stderr.all.filter((line) => line.startsWith("error: "));
    assertEquals(lines, isLost ? [] : [line, line]);
    const hasStack = stderr.all.length > lines.length;
    assertEquals(hasStack, isOther && error instanceof Error);
  });
}

net.test("serve: clients that reset before they are accepted harm nobody", async () => {
  const handler = (client: Peer) => client.readSome();
  await using running = start({ maxClients: 1, handler });
  using first = await dial(running);
  await running.accepted.next();
  for (let i = 0; i < 20; i++) await reset(running);
  using last = await dial(running);
  await end(first);
  await end(last);
  assertEquals(await rest(last), "");
  const { remoteAddr } = running.accepted.all.at(-1)!.connection;
  assertEquals(remoteAddr, last.localAddr);
});

for (const name of ["BadResource", "EINVAL", "ConnectionReset", "mine"]) {
  Deno.test(`serve: where no Peer can be made, no server ends (${name})`, async () => {
    using stderr = capture("stderr");
    const peer = fake({ setNoDelay: () => fail(errorNamed(name)) });
    await using running = start({ handler: untilEnded }, [peer, fake()]);
    await running.accepted.next("the next one is served");
    assertEquals([peer.events, running.told()], [["close"], []]);
    assertEquals(stderr.all[0], name === "mine" ? "Error: mine" : undefined);
  });
}

Deno.test("serve: timeout, limit and noDelay hold for each client", async () => {
  using clock = fakeClock();
  const handler = (client: Peer) => client.readAll();
  const options = { timeout: 1_000, limit: 10, noDelay: false, handler };
  const peer = fake();
  const tooLong = fake(reads("x".repeat(11)));
  await using running = start(options, [peer, tooLong]);
  await turn();
  await clock.passed(1_000);
  const expected = ["InvalidData: 11 bytes, at most 10"];
  assertEquals(running.told(), expected);
  await clock.passed(100);
  expected.push("TimeoutError: time is up");
  assertEquals([running.told(), peer.events], [expected, ["close"]]);
});

// serve: its end

net.test("serve: a shutdown lets its clients finish, and accepts no more", async () => {
  const { signal } = controlled();
  const replies = new Events<string>();
  const handler = async (client: Peer) =>
    replies.push(await greet(client, GREETING));
  await using running = start({ signal, handler });
  using peer = await dial(running);
  assertEquals(await rest(peer), GREETING);
  assertEquals([listenersOn(signal), running.clients], [1, 1]);
  const ended = running.shutdown();
  await assertRejects(() => dial(running), Error);
  assertEquals(await isSettled(running.finished), false);
  await end(peer, REPLY);
  await Promise.all([ended, running.shutdown()]); // twice
  assertEquals([replies.all, listenersOn(signal)], [[REPLY], 0]);
  Deno.listen({ hostname: "127.0.0.1", port: running.addr.port }).close();
});

net.test("serve: a shutdown resets who waits in the kernel's queue", async () => {
  await using running = start({ maxClients: 1, handler: untilEnded });
  using _first = await dial(running);
  await running.accepted.next();
  using waiting = await dial(running);
  void running.shutdown(10_000);
  await assertRejects(() => rest(waiting), ConnectionReset);
  assertEquals(running.accepted.all.length, 1);
});

Deno.test("serve: a listener that its owner closes is a shutdown", async () => {
  using stderr = capture("stderr");
  await using running = start({ handler: untilEnded }, [fake()]);
  const client = await running.accepted.next();
  running.listener.close();
  assertEquals(await isSettled(running.finished), false);
  assert(client.isStopping);
  client.end(ENOUGH);
  await inTime("the end", running.finished);
  assertEquals([running.addr, stderr.all], [address(9), []]);
});

/** The graces of a shutdown's calls, and the timer of that which ends who is left. */
const GRACES: Record<string, [graces: unknown[], delay?: number]> = {
  "one": [[40], 40],
  "one in a later call": [[undefined, 40], 40],
  "one in a sooner call": [[40, undefined], 40],
  "nothing": [[0], 0],
  "less than nothing": [[-1], 0],
  "none": [[undefined]],
  "one too long for a timer": [[2 ** 31]],
  "an event, where it is passed on": [[new Event("stop")]],
};
for (const [name, [graces, delay]] of Object.entries(GRACES)) {
  Deno.test(`serve: a grace ends who is left after it (${name})`, async () => {
    using timer = timers();
    await using running = start({ handler: untilEnded }, fakes(2));
    await turn();
    for (const grace of graces) void running.shutdown(grace as number);
    if (delay !== undefined) await inTime("the end", running.finished);
    await turn();
    assertEquals(timer.delays, delay === undefined ? [] : [delay]);
    const reason = "AbortError: the server shuts down";
    assertEquals(running.told(), delay === undefined ? [] : [reason, reason]);
  });
}

for (const by of ["the grace that is over", "an abort"]) {
  Deno.test(`serve: ${by} closes who has only not left yet`, async () => {
    using _clock = fakeClock(); // or it would be closed a second later
    const [{ signal, abort }, peer] = [controlled(), fake()];
    await using running = start({ signal }, [peer]);
    await until("it waits", () => peer.events.includes("closeWrite"));
    if (by === "an abort") abort(ENOUGH);
    else void running.shutdown(0);
    await inTime("the end", running.finished);
    assertEquals([peer.events.at(-1), running.told()], ["close", []]);
  });
}

Deno.test("serve: `await using` waits for its clients", async () => {
  const done = new Events<boolean>();
  const listener = listenerOf([fake(reads())]);
  const handler = () => turn().then(() => done.push(true));
  const block = async () => {
    await using _server = serve({ listener, handler });
    await turn();
  };
  await inTime("the end of the block", block());
  assertEquals(done.all, [true]);
});

for (const steps of [0, 2, 6]) {
  Deno.test(`serve: an abort ends all, also who came ${steps} microtasks ago`, async () => {
    const { signal, abort } = controlled();
    const late = Promise.withResolvers<Deno.TcpConn>();
    const [peer, further] = [fake(), fake()];
    const handler = (client: Peer) => client.readSome();
    const options = { signal, maxClients: 1, handler };
    await using running = start(options, [late.promise, further]);
    late.resolve(peer);
    for (let i = 0; i < steps; i++) await null;
    abort("enough");
    await inTime("the end", running.finished);
    assertEquals([peer.events.at(-1), further.events], ["close", []]);
    const told = running.accepted.all.map(() => "enough");
    assertEquals([running.told(), listenersOn(signal)], [told, 0]);
  });
}

// serve: errors

Deno.test("serve: onError is called once, after the close", async () => {
  const peer = fake(reads());
  const told: unknown[] = [];
  const onError = (...all: unknown[]) => told.push(peer.events.at(-1), ...all);
  const handler = () => turn().then(() => fail(MINE));
  await using running = start({ onError, handler }, [peer]);
  const client = await running.accepted.next();
  await running.shutdown();
  assertEquals([told[0], told.length], ["close", 3]);
  assert(told[1] === MINE && told[2] === client);
});

const ended = (act: Handler): Handler => (client) => {
  client.end(ENOUGH);
  client.end(MINE); // for nothing
  return act(client);
};
const ABORT = errorNamed("AbortError");

/** What a handler does, whose sends fail, and what is told of it, if anything. */
const TOLD: Record<string, [act: Handler, told?: string]> = {
  "returns": [nothing],
  "closes by itself": [(client) => client[Symbol.asyncDispose]()],
  "ends, and reads": [ended((client) => client.readAll()), "Error: enough"],
  "ends, and sends": [ended((client) => client.send("x")), "Error: enough"],
  "ends, and returns": [ended(nothing), "Error: enough"],
  "ends, and throws": [ended(() => fail(MINE)), "TypeError: mine"],
  "ends, and catches it": [ended((one) => one.readAll().catch(nothing))],
  "ends without an error": [(client) => client.end(null), "null"],
  "ends what waits for its signal": [(client) => {
    queueMicrotask(() => client.end(ENOUGH));
    return nodeTimeout(60_000, null, { signal: client.signal });
  }, "Error: enough"],
  "does not await a send": [(client) => void client.send("x"), "Error: failed"],
  "does not await a send, and throws": [(client) => {
    client.send("x");
    fail(MINE);
  }, "TypeError: mine"],
  "throws an AbortError of its own": [() => fail(ABORT), `${ABORT}`],
};
for (const [name, [act, expected]] of Object.entries(TOLD)) {
  Deno.test(`serve: what onError is told, once, of a handler that ${name}`, async () => {
    const peer = fake({ ...failing("write", "failed"), ...reads() });
    await using running = start({ handler: act }, [peer]);
    await running.accepted.next();
    await until("it is left", () => running.clients === 0);
    assertEquals(running.told(), expected ? [expected] : []);
  });
}

Deno.test("serve: nobody waits for an onError; what it throws is shown", async () => {
  using stderr = capture("stderr");
  const answers: (() => unknown)[] = [
    () => new Promise(nothing),
    () => fail(new Error("mine too")),
    () => Promise.reject(new Error("mine too")),
    () => running.shutdown(),
  ];
  const onError = () => answers.shift()!();
  const options = { maxClients: 1, handler: () => fail(MINE), onError };
  await using running = start(options, answers.map(() => fake(reads())));
  await inTime("the end", running.finished);
  await turn();
  const shown = stderr.all.filter((line) => !/^ +at /.test(line));
  assertEquals(shown, ["Error: mine too", "Error: mine too"]);
  assert(stderr.all.length > shown.length);
});
// Peer: its making

for (const wrong of WRONG_OPTIONS) {
  const [[name, value]] = Object.entries(wrong) as [[string, unknown]];
  net.test(`Peer: a ${name} of ${value} is refused, and the connection closed`, async () => {
    using pair = await connected();
    assertThrows(() => new Peer(pair.there, wrong), RangeError, name);
    assertEquals(await rest(pair.here), "");
  });
}

net.test("Peer: a second one is a TypeError, and leaves the first alone", async () => {
  const { peer, here, there } = await withPeer();
  assertThrows(() => new Peer(there), TypeError, "has a Peer");
  await send(here, "one\n");
  assertEquals(await peer.readLine(), "one");
});

Deno.test("Peer: noDelay is on by default, off if told so, of TCP alone", () => {
  for (const noDelay of [undefined, true, false]) {
    const connection = fake();
    new Peer(connection, { noDelay });
    const events = noDelay === false ? [] : ["setNoDelay true"];
    assertEquals(connection.events, events);
    new Peer(fakeTls(), { noDelay }); // has no such method
  }
});

// Peer: reading

type Calls = Record<string, (peer: Peer, count: number) => Promise<unknown>>;
/** The reads of a message, of so many bytes, as a text. */
const MESSAGES: Calls = {
  readLine: (peer) => peer.readLine(),
  "for await": (peer) => nextOf(peer),
  readExactly: async (peer, count) => decode(await peer.readExactly(count)),
  readAll: (peer) => peer.readAll(),
};
/** And the others. */
const READS: Calls = {
  ...MESSAGES,
  readSome: (peer) => peer.readSome().then((bytes) => bytes && decode(bytes)),
  hasMore: (peer) => peer.hasMore(),
};

/** Texts, and their lines, with a limit of 10 bytes; `null` for `InvalidData`. */
const LINES: Record<string, (string | null)[]> = {
  "": [],
  "\n": [""],
  "a\n\r\n\nb\r\n": ["a", "", "", "b"],
  "a\rb\r\r\nc\r": ["a\rb\r", "c\r"],
  "\uFEFF好\n👋🏽": ["\uFEFF好", "👋🏽"],
  "0123456789\n0123456789\r\n0123456789": Array(3).fill("0123456789"),
  "a\n0123456789x\nb\n": ["a", null],
  "a\n0123456789\r": ["a", null],
  "a\n0123456789\r\r\n": ["a", null],
  "a\n0123456789\rx\r\n": ["a", null],
};
for (const [text, lines] of Object.entries(LINES)) {
  Deno.test(`Peer: lines wherever reads are cut (${JSON.stringify(text)})`, async () => {
    for (const method of ["readLine", "for await"]) {
      for (const source of [reads(text), ...waysToCut(text)]) {
        const peer = over(source, { limit: 10 });
        const next = () => READS[method]!(peer, 0);
        for (const line of lines) {
          if (line !== null) assertEquals(await next(), line);
          else await assertRejects(next, InvalidData);
        }
        if (!lines.includes(null)) assertEquals(await next(), null);
      }
    }
  });
}

Deno.test("Peer: lines, so many bytes and the rest, in turn", async () => {
  for (const source of waysToCut("LEN 5\nhe\nlo\r\n好rest\nof it")) {
    const peer = over(source);
    assertEquals(await peer.readLine(), "LEN 5");
    assertEquals(await peer.readExactly(5), encode("he\nlo"));
    assertEquals(await peer.readLine(), "");
    assertEquals(await peer.readExactly(3), encode("好"));
    assertEquals(await peer.readLine(), "rest");
    await assertRejects(() => peer.readExactly(6), UnexpectedEof);
    assertEquals(peer.buffered, encode("of it"));
    assertEquals(await peer.readAll(), "of it");
    assertEquals(peer.buffered, encode(""));
    assertEquals([await peer.readAll(), await peer.readLine()], ["", null]);
    assertEquals(await peer.readSome(), null);
    assertEquals(await peer.hasMore(), false);
    await assertRejects(() => peer.readExactly(1), UnexpectedEof);
    assertEquals(await peer.readExactly(0), encode(""));
  }
});

for (const method of ["readExactly", "readSome"] as const) {
  Deno.test(`Peer: ${method} gives copies, which later reads leave alone`, async () => {
    const texts = Array.from({ length: 200 }, (_, i) => `${i}`.padEnd(100));
    const peer = over(reads(...texts));
    const pieces: Uint8Array[] = [];
    while (await peer.hasMore()) pieces.push((await peer[method](50))!);
    assertEquals(pieces.map(decode).join(""), texts.join(""));
  });
}

Deno.test("Peer: bytes that are no UTF-8 become U+FFFD", async () => {
  const peer = over(reads(Uint8Array.of(0xff, 0x41, 0x0a, 0xe4)));
  assertEquals([await peer.readLine(), await peer.readAll()], [
    "\uFFFDA",
    "\uFFFD",
  ]);
});

Deno.test("Peer: a wrong number of bytes is refused before it reads", async () => {
  const peer = over({ read: () => fail(MINE) }, { limit: 3 });
  for (const count of [-1, 1.5, NaN, Infinity, "1" as never]) {
    await assertRejects(() => peer.readExactly(count), RangeError);
  }
  await assertRejects(() => peer.readExactly(4), InvalidData, "at most 3");
});

for (const [method, call] of Object.entries(MESSAGES)) {
  Deno.test(`Peer: a message has no more bytes than the limit (${method})`, async () => {
    for (const limit of [10, undefined]) {
      const most = limit ?? 65_536;
      const whole = call(over(reads(LARGEST.slice(0, most)), { limit }), most);
      assertEquals(await whole, LARGEST.slice(0, most));
      const source = reads(...Array(20).fill(LARGEST));
      const tooLong = call(over(source, { limit }), most + 1);
      await assertRejects(() => tooLong, InvalidData, `at most ${most}`);
      assert(source.rooms.length < 10, "it reads on and on");
    }
    const later = over(reads("123456789\n0123456789"), { limit: 10 });
    await later.readLine();
    assertEquals(await call(later, 10), "0123456789"); // Each has its own.
  });

  Deno.test(`Peer: byte by byte, it takes time by its bytes (${method})`, async () => {
    let left = 200_000;
    const read = async (room: Uint8Array) => {
      room[0] = 0x78;
      return await left-- > 0 ? 1 : null;
    };
    const peer = over({ read }, { limit: Infinity });
    const before = cpuUsage(); // not the time, as the machine may be busy
    assertEquals(await call(peer, 200_000), "x".repeat(200_000));
    assert(cpuUsage(before).user < 1_500_000, "microseconds");
  });
}

Deno.test("Peer: it reads into 128 bytes, 64 KiB of what is fast, or 4 KiB", async () => {
  for (const [most, size] of [[200_000, 50_000], [100, 50]] as const) {
    const { rooms, read } = reads(
      ...Array(200_000 / most).fill("x".repeat(most)),
    );
    const peer = over({ read });
    while (await peer.hasMore()) await peer.readExactly(size);
    const sizes = rooms.map(({ buffer }) => buffer.byteLength);
    const largest = most > 100 ? 65_536 : 4_096;
    const expected = [128, largest, 4_096];
    assertEquals([sizes[0], Math.max(...sizes), sizes.at(-1)], expected);
  }
});

for (const [method, call] of Object.entries(READS)) {
  net.test(`Peer: a read during a ${method} is a TypeError`, async () => {
    const { peer, here } = await withPeer();
    const pending = call(peer, 3);
    for (const other of Object.values(READS)) {
      const refused = inTime("the refusal", other(peer, 3));
      await assertRejects(() => refused, TypeError, "pending");
    }
    await end(here, "one\ntwo\n");
    const [got, left] = [await pending, await peer.readAll()];
    const whole = method === "hasMore" ? left : `${got}${left}`;
    assertEquals(whole.replaceAll("\n", ""), "onetwo");
  });

  const isBetween = method === "hasMore" || method === "for await";
  const how = isBetween ? "but for TLS without close_notify" : "ever";
  Deno.test(`Peer: what fails has not ended, ${how} (${method})`, async () => {
    const unsaid = new UnexpectedEof("no close_notify");
    for (const error of [MINE, new UnexpectedEof("in the handshake"), unsaid]) {
      const peer = over(cutAfter("a\n", error));
      assertEquals(await peer.readLine(), "a");
      for (let i = 0; i < 2; i++) { // also if asked again
        const end = call(peer, 1);
        if (isBetween && error === unsaid) assert(!await end);
        else assert(await errorOf(end) === error);
      }
    }
  });
}

// Peer: stop

for (const method of ["hasMore", "for await"]) {
  net.test(`Peer: a stop ends an idle ${method}, whose read loses nothing`, async () => {
    const { peer, here } = await withPeer();
    const pending = READS[method]!(peer, 1);
    assert(!await isSettled(pending) && !peer.isStopping);
    peer.stop();
    assert(!await inTime("the end of it", pending) && peer.isStopping);
    await send(here, "one\n");
    assertEquals(await peer.readLine(), "one");
  });
}

net.test("Peer: a stop ends a loop before its next line", async () => {
  const { peer, here } = await withPeer();
  await send(here, "one\ntwo\n");
  for await (const line of peer) {
    assertEquals(line, "one");
    peer.stop();
  }
  assertEquals([await peer.hasMore(), await nextOf(peer)], [false, null]);
  assertEquals(peer.buffered, encode("two\n"));
  assertEquals(await peer.readLine(), "two");
});

for (const [method, call] of Object.entries(READS)) {
  if (method === "hasMore") continue;
  net.test(`Peer: a stop lets a read or a line go on (${method})`, async () => {
    const { peer, here } = await withPeer();
    const pending = call(peer, 3);
    const begun = method === "for await" ? "o" : "";
    await send(here, begun);
    await until("it has begun", () => peer.buffered.length === begun.length);
    peer.stop();
    assert(!await isSettled(pending));
    await end(here, begun ? "ne\n" : "one");
    assertEquals(await inTime("the read", pending), "one");
  });
}

// Peer: sending

net.test("Peer: sends are whole, in order, before the half-close", async () => {
  const { peer, here } = await withPeer();
  const texts = [..."abcd"].map((letter) => letter.repeat(3_000_000));
  const data = texts.flatMap((text, i) => [i % 2 ? text : encode(text), ""]);
  const sends = data.map((one) => peer.send(one));
  sends.push(peer.closeWrite(), peer.closeWrite());
  assertEquals(peer.queued, 12_000_000);
  assert(await rest(here) === texts.join(""));
  await inTime("the sends", Promise.all(sends));
  assertEquals(peer.queued, 0);
  await send(here, "still\n");
  assertEquals(await peer.readLine(), "still");
});

net.test("Peer: wrong data is a TypeError at once, and costs the rest nothing", async () => {
  const { peer, here } = await withPeer();
  for (const wrong of [undefined, null, 1, [1], new ArrayBuffer(1)]) {
    assertThrows(() => peer.send(wrong as never), TypeError, "bytes");
  }
  await peer.send("right");
  await peer.closeWrite();
  assertEquals([await rest(here), peer.queued], ["right", 0]);
});

for (const last of ["closeWrite", Symbol.asyncDispose] as const) {
  net.test(`Peer: a send after ${String(last)} rejects, and nothing is queued`, async () => {
    const { peer, here } = await withPeer();
    const over = inTime("the end of it", peer[last]());
    const sent = inTime("the refusal", peer.send("x"));
    await assertRejects(() => sent, BadResource);
    assertEquals([await rest(here), peer.queued], ["", 0]);
    await end(here);
    await over;
  });
}

Deno.test("Peer: such a send is told after closeWrite, not after the close", async () => {
  for (const last of ["closeWrite", Symbol.asyncDispose] as const) {
    const peer = over(reads());
    peer[last]();
    peer.send("x");
    const closing = inTime("the close", peer[Symbol.asyncDispose]());
    const told = await closing.then(() => "nothing", nameOf);
    assertEquals(told, last === "closeWrite" ? "BadResource" : "nothing");
  }
});

Deno.test("Peer: where a send fails, so does all behind it, also later", async () => {
  const { promise: gate, reject } = Promise.withResolvers<number>();
  let writes = 0;
  const write = () => writes++ ? Promise.resolve(1) : gate;
  const connection = fake({ write });
  const peer = new Peer(connection, { noDelay: false });
  const sends = [peer.send("a"), peer.send("b"), peer.closeWrite()];
  reject(MINE);
  await turn();
  sends.push(peer.send("c"), peer.closeWrite());
  for (const sent of sends) assert(await errorOf(sent) === MINE);
  assertEquals([writes, connection.events, peer.queued], [1, [], 0]);
});

/** What waits where one send more is too much. */
const TOO_MUCH = {
  "16 MiB": ["x".repeat(2 ** 24), "y"],
  "131,072 sends": [MORE_THAN_BUFFERS, ...Array(2 ** 17).fill("y")],
};
for (const [most, data] of Object.entries(TOO_MUCH)) {
  net.test(`Peer: a send while more than ${most} wait ends the peer`, async () => {
    const { peer } = await withPeer();
    const sends = data.map((one) => peer.send(one));
    assert(!peer.signal.aborted);
    sends.push(peer.send("z"));
    const { reason } = peer.signal;
    assert(`${reason}`.includes("too much waits"));
    const all = await inTime("the sends", Promise.allSettled(sends));
    assert(
      all.every((one) => one.status === "rejected" && one.reason === reason),
    );
  });
}

Deno.test("Peer: over TLS a write has 16 KiB at most", async () => {
  const sizes: number[] = [];
  const write = async ({ length }: Uint8Array) =>
    await sizes.push(length) && length;
  await new Peer(fakeTls({ write })).send("x".repeat(40_000));
  assertEquals(sizes, [16_384, 16_384, 7_232]);
});

net.test("Peer: reads and sends that nobody awaits end no program", async () => {
  const { peer } = await withPeer();
  const readAll = () => {
    peer.readLine();
    peer.readExactly(-1);
    peer.readAll();
    peer.hasMore();
    peer[Symbol.asyncIterator]().next();
  };
  const sendAll = () => [peer.send(LARGEST), peer.closeWrite()];
  for (const call of [readAll, sendAll, sendAll, turn]) await call();
  peer.end(ENOUGH);
  for (const call of [readAll, sendAll, turn, readAll]) await call();
  const other = over();
  other.end(ENOUGH);
  other[Symbol.asyncDispose](); // nor does a disposal
});

type AfterSend = (peer: Peer, sent: Promise<void>) => unknown;
/** How a send fails, whether that is told at the close, what is done before. */
const AT_CLOSE: Record<string, [fails: string, isTold: boolean, AfterSend]> = {
  "nothing is done": ["TimedOut", true, nothing],
  "a byte is read": ["TimedOut", true, (peer) => peer.readExactly(1)],
  "it is awaited": ["TimedOut", false, (_, sent) => errorOf(sent)],
  "it is caught": ["TimedOut", false, (_, sent) => sent.catch(nothing)],
  "another is awaited": ["EPIPE", false, (peer) => errorOf(peer.send("x"))],
  "a read rejects": ["TimedOut", false, (peer) => errorOf(peer.readAll())],
  "the end is read": ["BrokenPipe", false, (peer) => peer.readAll()],
  "the end was read before": ["BrokenPipe", true, nothing],
};
for (const [what, [name, isTold, step]] of Object.entries(AT_CLOSE)) {
  const is = isTold ? "once" : "no more";
  Deno.test(`Peer: the close tells of a failed send ${is} (${what})`, async () => {
    const peer = over({ ...reads("said"), ...failing("write", name) });
    if (what.endsWith("before")) await peer.readAll();
    const sent = peer.send("x");
    await turn();
    await step(peer, sent);
    const closing = inTime("the close", peer[Symbol.asyncDispose]());
    const told = await closing.then(() => "nothing", String);
    assertEquals(told, isTold ? `${errorNamed(name)}` : "nothing");
  });
}

Deno.test("Peer: a reset that a read has met is not told again", async () => {
  const failed = failing("read", "ConnectionReset");
  const peer = over({ ...failed, ...failing("write", "BrokenPipe") });
  await errorOf(peer.readAll());
  peer.send("x");
  await inTime("the close", peer[Symbol.asyncDispose]());
});

for (const [method, call] of Object.entries(READS)) {
  net.test(`Peer: after a reset that a send met, there is no end (${method})`, async () => {
    using listener = listen();
    using connection = await reset(listener, "", accept(listener));
    const peer = new Peer(connection);
    const sendOnAndOn = async () => {
      for (;; await turn()) await peer.send("x");
    };
    const error = await errorOf(sendOnAndOn());
    assertEquals(nameOf(error), "ConnectionReset");
    assert(await errorOf(call(peer, 1)) === error);
  });
}

// Peer: time

/** What a peer may do that has 1,000 ms for each thing: it stays. */
const STAYS: Record<string, (given: WithPeer) => unknown> = {
  "each read has its own": async ({ peer, here, pass }) => {
    for (const text of ["one", "two"]) {
      const line = peer.readLine();
      pass(1_000);
      await send(here, `${text}\n`);
      assertEquals(await line, text);
    }
  },
  "what is buffered, or idle, has none": async (given) => {
    const { peer, here, pass, looks } = given;
    assertEquals(looks.size, 0);
    await send(here, "one\ntwo\n");
    assertEquals(await peer.readLine(), "one");
    pass(50);
    assertEquals(looks.size, 0);
    assertEquals([await peer.readLine(), looks.size], ["two", 0]);
  },
  "a send that moves starts anew": async ({ peer, here, pass }) => {
    peer.send(MORE_THAN_BUFFERS);
    await untilStill(peer);
    pass(1_000);
    const before = peer.queued;
    const buffer = new Uint8Array(65_536);
    while (peer.queued === before) await inTime("it", here.read(buffer));
    pass(1_000);
    assert(peer.queued > 0);
  },
  "renew starts anew": async ({ peer, here, pass }) => {
    const line = peer.readLine();
    peer.send(MORE_THAN_BUFFERS);
    await untilStill(peer);
    for (let i = 0; i < 3; i++, peer.renew()) pass(1_000);
    await send(here, "one\n");
    assertEquals(await line, "one");
  },
  "renew(ms) sets another, also from then on": async ({ peer, here, pass }) => {
    const first = peer.readLine();
    peer.renew(60_000);
    pass(60_000);
    await send(here, "one\n");
    assertEquals(await first, "one");
    const next = peer.readLine();
    pass(60_000);
    await send(here, "two\n");
    assertEquals(await next, "two");
  },
  "a standstill is not counted": async ({ peer, here, pass }) => {
    const line = peer.readLine();
    pass(500);
    pass(60_000, 60_000);
    pass(450);
    await send(here, "one\n");
    assertEquals(await line, "one");
  },
};
for (const [rule, step] of Object.entries(STAYS)) {
  net.test(`Peer: of its time, ${rule}`, async () => {
    const given = await withPeer();
    await inTime("it", Promise.try(step, given));
    assert(!given.peer.signal.aborted);
  });
}

/** What takes a peer too long that has 1,000 ms. */
const ENDS: typeof STAYS = {
  "of a read, in total": async ({ peer, here, pass }) => {
    peer.readLine();
    for (let i = 1; i <= 5; i++) {
      pass(200);
      await send(here, "x");
      await until("it has come", () => peer.buffered.length === i);
    }
  },
  "of a send": async ({ peer, pass }) => {
    peer.send(MORE_THAN_BUFFERS);
    await untilStill(peer);
    pass(1_000);
  },
  "of what a standstill moved": ({ peer, pass }) => {
    peer.readLine();
    pass(900);
    pass(60_000, 60_000);
    pass(50);
  },
};
for (const [what, step] of Object.entries(ENDS)) {
  net.test(`Peer: 50 to 100 ms after its time it is ended (${what})`, async () => {
    const given = await withPeer();
    await step(given);
    given.pass(50);
    assert(!given.peer.signal.aborted);
    given.pass(50);
    assertEquals(nameOf(given.peer.signal.reason), "TimeoutError");
  });
}

net.test("Peer: the timer of a read holds no program", async () => {
  const held: unknown[] = [];
  using _ = replace(Deno, "unrefTimer", held.push.bind(held));
  const { peer } = await withPeer();
  peer.readLine();
  assertEquals(held.length, 1);
});

Deno.test("Peer: renew refuses what is no number above 0", () => {
  for (const wrong of [0, -1, NaN, "5" as never, null as never]) {
    assertThrows(() => over().renew(wrong), RangeError, "timeout");
  }
});

// Peer: its end

/** Reasons that one may give, among them some that can't be shown. */
const REASONS: Record<string, unknown> = {
  ...{ ENOUGH, undefined, null: null, "a text": "why" },
  "a hostile proxy": new Proxy({}, { get: () => fail(MINE) }),
};
for (const [name, reason] of Object.entries(REASONS)) {
  net.test(`Peer: its end rejects all with the reason, and closes (${name})`, async () => {
    const { peer, here } = await withPeer();
    const calls: Promise<unknown>[] = [peer.readLine()];
    calls.push(peer.send(MORE_THAN_BUFFERS), peer.closeWrite());
    await turn();
    peer.end(reason);
    peer.end(MINE); // After the close, it does nothing.
    const all = await inTime("the calls", Promise.allSettled(calls));
    const later = [peer.readLine(), peer.hasMore(), peer.send("x")];
    all.push(...await Promise.allSettled<unknown>(later));
    for (const one of all as PromiseRejectedResult[]) {
      assert(one.status === "rejected" && one.reason === reason);
    }
    const { aborted, reason: told } = peer.signal;
    assert(aborted && (told === reason || reason === undefined));
    await rest(here);
    await peer[Symbol.asyncDispose](); // It was told.
  });
}

net.test("Peer: its end is told at the close if no call was", async () => {
  const { peer } = await withPeer();
  peer.end(MINE);
  const closing = peer[Symbol.asyncDispose]();
  assert(await isSettled(closing) && await errorOf(closing) === MINE);
});

net.test("Peer: the option signal ends it, and is let go at each close", async () => {
  const { signal, abort } = controlled();
  using pair = await connected();
  const ended = new Peer(pair.here, { signal });
  const closed = new Peer(pair.there, { signal });
  assertEquals(listenersOn(signal), 2);
  await ended.closeWrite();
  await inTime("the close", closed[Symbol.asyncDispose]());
  assertEquals(nameOf(closed.signal.reason), "AbortError");
  abort(MINE);
  assert(await errorOf(ended.readLine()) === MINE);
  assert(ended.signal.reason === MINE);
  assertEquals(listenersOn(signal), 0);
});

// Peer: its close

net.test("Peer: a send or half-close that its close refuses costs nothing", async () => {
  const { peer, here } = await withPeer();
  const large = "x".repeat(20_000_000);
  peer.send(large); // more than may wait, if another came
  const closed = peer[Symbol.asyncDispose]();
  const refused = [peer.send("late"), peer.closeWrite()].map(errorOf);
  assert(await rest(here) === large); // and its end, though `here` stays
  for (const error of refused) assertEquals(nameOf(await error), "BadResource");
  here.close();
  await inTime("the close", closed);
});

net.test("Peer: its close sends what is queued, and drops what comes", async () => {
  const { peer, here, pass, looks } = await withPeer();
  const { signal } = peer;
  await send(here, LARGEST); // Unread at the close, it would be a reset.
  peer.send(MORE_THAN_BUFFERS);
  const closing = inTime("the close", peer[Symbol.asyncDispose]());
  assert(await rest(here) === MORE_THAN_BUFFERS);
  await send(here, LARGEST);
  assert(!await isSettled(closing) && !signal.aborted);
  await here.closeWrite();
  await closing;
  await peer[Symbol.asyncDispose](); // again
  assertEquals(nameOf(signal.reason), "AbortError");
  pass(50);
  assertEquals([looks.size, peer.buffered.length], [0, 0]);
});

net.test("Peer: its close waits for a second at most for an end", async () => {
  const { peer, here, pass } = await withPeer();
  const closing = inTime("the close", peer[Symbol.asyncDispose]());
  assertEquals(await rest(here), "");
  pass(900);
  await send(here, "still here");
  assert(!await isSettled(closing));
  pass(100);
  await closing;
});

for (const [timeout, most] of [[1_000, 1_000], [Infinity, 10_000]] as const) {
  Deno.test(`Peer: its close has ${most} ms to send (timeout: ${timeout})`, async () => {
    using clock = fakeClock();
    let writing = Promise.withResolvers<number>();
    const write = () => (writing = Promise.withResolvers()).promise;
    const peer = over({ write }, { timeout });
    peer.readLine(); // Where nobody awaits it, its time does not count.
    clock.pass(950);
    peer.send(LARGEST);
    const closing = inTime("the close", peer[Symbol.asyncDispose]());
    for (let left = most; left > 0; left -= 500, await turn()) {
      clock.pass(500);
      writing.resolve(1); // It moves on.
    }
    clock.pass(50);
    assert(!peer.signal.aborted);
    clock.pass(50);
    assertEquals(nameOf(peer.signal.reason), "TimeoutError");
    writing.reject(MINE); // as it is closed
    await closing.catch(nothing);
  });
}

Deno.test("Peer: for a peer that has ended, its close is a close and no more", async () => {
  for (const source of [reads("said"), cutAfter("said", MINE)]) {
    const connection = fake(source);
    const peer = new Peer(connection);
    await peer.readAll().catch(nothing);
    assert(await isSettled(peer[Symbol.asyncDispose]()));
    assertEquals(connection.events, ["setNoDelay true", "close"]);
  }
});

net.test("Peer: after its close, each read rejects, and an end does nothing", async () => {
  const { peer, here } = await withPeer();
  await end(here, "unread");
  await peer[Symbol.asyncDispose]();
  peer.end(MINE);
  for (const call of Object.values(READS)) {
    assertEquals(nameOf(await errorOf(call(peer, 1))), "BadResource");
  }
  assertEquals(nameOf(peer.signal.reason), "AbortError");
  await peer[Symbol.asyncDispose]();
});
// onStopSignal

for (const name of STOP_SIGNALS) {
  Deno.test(`onStopSignal: once; in 100 ms the next is the system's (${name})`, async () => {
    using signals = stopSignals();
    let calls = 0;
    using _ = onStopSignal(() => calls++);
    const began = performance.now();
    for (const again of [name, ...STOP_SIGNALS]) signals.send(again);
    assertEquals([calls, signals.names()], [1, STOP_SIGNALS]);
    await until("it stops listening", () => signals.names().length === 0);
    assert(performance.now() - began >= 99);
  });
}

Deno.test("onStopSignal: disposing of it, within the call back, leaves nothing", () => {
  using signals = stopSignals();
  const listening = onStopSignal(() => listening[Symbol.dispose]());
  signals.send("SIGINT");
  listening[Symbol.dispose]();
  assertEquals(signals.names(), []);
});

Deno.test("onStopSignal: on Windows there is no SIGTERM to listen for", () => {
  using _windows = replace(Deno, "build", { ...Deno.build, os: "windows" });
  using signals = stopSignals();
  using _ = onStopSignal(nothing);
  assertEquals(signals.names(), ["SIGINT"]);
});

// showError

const USUAL =
  `${ONE_IS_LOST} BrokenPipe EPIPE TimedOut InvalidData ETIMEDOUT ` +
  "NetworkUnreachable ENETUNREACH EHOSTUNREACH UnexpectedEof " +
  "TimeoutError AbortError";
for (const name of USUAL.split(" ")) {
  Deno.test(`showError: what may happen anywhere is one line (${name})`, async () => {
    const error = errorNamed(name);
    const remoteAddr = { ...address(7), hostname: "::1" };
    assertEquals(await linesOf(error, { remoteAddr }), [`[::1]:7 ${error}`]);
  });
}

const FORGED = "my \x1b\n127.0.0.1:5 Error: y\r\n127.0.0.1:6 Error: z";
const MISTAKES = [
  Object.assign(new TypeError(FORGED), { code: 7 }),
  new DOMException(FORGED, "InvalidCharacterError"), // of `atob`
  Object.assign(new Deno.errors.NotFound(FORGED), { code: "ENOENT" }),
  new InvalidData(FORGED), // which has no stack, as it may happen anywhere
];
for (const error of MISTAKES) {
  Deno.test(`showError: all else has its stack, and forges no line (${error.name})`, async () => {
    const [line, ...others] = await linesOf(error);
    assertEquals(line, `127.0.0.1:7 ${error.name}: my \\u001b`);
    assert(others.every((line) => /^ +\S[^\r]*$/.test(line)), `${others}`);
    const hasStack = others.some((line) => /^ +at /.test(line));
    assertEquals(hasStack, error.name !== "InvalidData");
  });
}

Deno.test("showError: it is onError's default; a given reason is one line", async () => {
  using stderr = capture("stderr");
  const handler = (client: Peer) => client.end(ENOUGH);
  await using running = start({ handler, onError: undefined }, [fake()]);
  await running.accepted.next();
  await running.shutdown();
  assertEquals(stderr.all, ["127.0.0.1:7 Error: enough"]);
});

const throwing = (object: object, key: PropertyKey) =>
  Object.defineProperty(object, key, { get: () => fail(new Error("odd")) });
const revoked = Proxy.revocable({}, {});
revoked.revoke();
/** Errors at which a look fails. */
const ODD: Record<string, unknown> = {
  "inspection": throwing({}, Symbol.for("Deno.customInspect")),
  "message": throwing(errorNamed("BrokenPipe"), "message"),
  "code": throwing(new Error(), "code"),
  "proxy": revoked.proxy,
};
for (const [name, error] of Object.entries(ODD)) {
  Deno.test(`showError: an error whose ${name} throws ends nothing`, async () => {
    assert((await linesOf(error)).length > 0);
  });
}

Deno.test("showError: where nobody reads, 1,000 errors wait", async () => {
  using stderr = capture("stderr");
  const reader = Promise.withResolvers<void>();
  stderr.gate = reader.promise;
  const client = new Peer(fake());
  for (let i = 0; i < 1_500; i++) showError("an error", client);
  reader.resolve();
  await turn();
  assertEquals(stderr.all.length, 1_000);
  showError("a later one", client);
  await turn();
  assertEquals(stderr.all.at(-1), "127.0.0.1:7 a later one");
});

// server.ts, the command

const LOST = { ...reads(), ...failing("write", "EPIPE") };
/** A client, what is printed of it, and the exit code with `--once`. */
const OUTCOMES: [peer: Fake, outcome: string, code: number][] = [
  [fake(reads("1\x1b\n\r\n")), "replied: 1\\u001b\\n", 0],
  [fake(reads(LARGEST, "x")), "sent too long a reply", 1],
  [fake(), "timed out", 1],
  [fake({}, "hi\x1b\n"), "timed out; so far: hi\\u001b", 1],
  [fake(failing("read", "ConnectionReset")), "reset the connection", 1],
  [fake(LOST), "reset the connection", 1],
  [fake(failing("read", "mine")), "failed", 1],
];
for (const [peer, outcome, code] of OUTCOMES) {
  Deno.test(`server.ts: with --once it says of its client: ${outcome}`, async () => {
    const other = fake();
    const line = "server.ts --once --timeout=0.05";
    await using command = run(line, [peer, other]);
    assertEquals(await command.code(), code);
    const lines = ["connected", outcome].map((what) => `127.0.0.1:7 ${what}`);
    assertEquals(command.out.all.slice(1), [...lines, "Served 1 client"]);
    assertEquals([peer.events.at(-1), other.events], ["close", []]);
    assert(!peer.events.includes("setNoDelay true"), "it needs none");
    const [shown] = command.err.all; // with its stack
    assertEquals(shown, outcome === "failed" ? "Error: mine" : undefined);
  });
}

Deno.test("server.ts: while Deno may ask, a stop signal is the system's", async () => {
  const heard: string[][] = [];
  const refuses = () => fail(heard.push(command.names()) && MINE);
  await using command = run("server.ts", refuses);
  assertEquals([await command.code(), heard], [1, [[]]]);
});

for (const [code, line] of ["server.ts", "server.ts --once"].entries()) {
  Deno.test(`server.ts: a stop signal without a client gives ${code} (${line})`, async () => {
    await using command = run(line, []);
    await command.out.next("it listens");
    command.signal("SIGTERM");
    await command.ends(code);
    assertEquals(command.names(), []);
    const stopping = "Stopping: 0 clients to finish";
    const lines = ["Listening on 127.0.0.1:9", stopping, "Served 0 clients"];
    assertEquals(command.out.all, lines);
  });
}

for (const steps of [0, 3, 7]) {
  Deno.test(`server.ts: after --once, a signal changes nothing (${steps} steps)`, async () => {
    const [one, two] = [fake(reads("one")), fake(reads("two"))];
    await using command = run("server.ts --once", [one, two]);
    const line = "127.0.0.1:7 replied: one";
    await until(line, () => command.out.all.includes(line));
    for (let i = 0; i < steps; i++) await null;
    command.signal("SIGINT");
    await command.ends(0);
    assertEquals([two.events, command.out.all.at(-1)], [[], "Served 1 client"]);
  });
}

Deno.test("server.ts: a mistake of its own is thrown, with its stack", async () => {
  await using command = run("server.ts", []);
  using _ = replace(Deno, "addSignalListener", () => fail(MINE));
  await assertRejects(() => command.code(), TypeError, "mine");
});

Deno.test("server.ts: where nobody reads, 16 MiB of lines wait", async () => {
  const text = "x".repeat(65_000);
  const replies = Array.from({ length: 270 }, (_, i) => `${i} ${text}`);
  const peers = replies.map((reply) => fake(reads(reply)));
  const reader = Promise.withResolvers<void>();
  await using command = run("server.ts", peers);
  command.out.gate = reader.promise;
  await until("all are served", () => peers.at(-1)!.events.includes("close"));
  reader.resolve();
  command.signal("SIGINT");
  await command.ends(0, ["error: cannot print: nobody reads the lines"]); // once
  const lines = command.out.all.filter((line) => line.endsWith(text));
  assert(lines.length > 255 && lines.length < 259, `${lines.length} lines`);
  const kept = replies.slice(0, lines.length);
  assertEquals(lines, kept.map((reply) => `127.0.0.1:7 replied: ${reply}`));
});

// exchange

net.test("exchange: it reads the greeting to its end, replies, and closes", async () => {
  const events: unknown[] = [];
  const onConnect = ({ port }: Deno.NetAddr) => events.push(port);
  using peers = await exchanging({ reply: "one\n", onConnect });
  await send(peers.there, "\ufeffgood ");
  await end(peers.there, "day");
  assertEquals(await rest(peers.there), "one\n");
  peers.there.close();
  assertEquals(await peers.outcome, "\ufeffgood day");
  assertEquals(events, [peers.there.localAddr.port]);
  assertEquals(peers.greetings, ["\ufeffgood day", true]);
});

Deno.test("exchange: by default with 127.0.0.1:8888, and with its reply", async () => {
  for (const options of [undefined, UNSET]) {
    const peer = fake(reads(TEXT));
    const asked: unknown[] = [];
    using _ = replace(Deno, "connect", async (to: Deno.ConnectOptions) => {
      asked.push(to.hostname, to.port);
      return await peer;
    });
    assertEquals(await inTime("the greeting", exchange(options)), TEXT);
    assertEquals(asked, ["127.0.0.1", 8888]);
    assertEquals(peer.events[0], `write ${encode(REPLY).length}`);
  }
});

net.test("exchange: a greeting counts after two seconds of silence", async () => {
  using clock = fakeClock();
  using peers = await exchanging({ timeout: 60_000 });
  await clock.passed(5_000); // before the first part there is no such end
  await send(peers.there, "good ");
  await peers.nextRead();
  await clock.passed(2_000);
  await send(peers.there, "day");
  await peers.nextRead();
  await clock.passed(2_000);
  assertEquals(peers.greetings, []);
  await clock.passed(50);
  assertEquals(await rest(peers.there), REPLY);
  peers.there.close();
  assertEquals(await peers.outcome, "good day");
  assertEquals(peers.greetings, ["good day", false]);
});

for (const isSilent of [false, true]) {
  const what = isSilent ? "it waits a second at most" : "it drops what comes";
  net.test(`exchange: its reply is not lost to a close: ${what}`, async () => {
    using clock = fakeClock();
    using peers = await exchanging();
    await send(peers.there, "hello");
    await peers.nextRead();
    await clock.passed(2_050);
    // It would hang, or be reset.
    await send(peers.there, isSilent ? "" : MORE_THAN_BUFFERS);
    assertEquals(await rest(peers.there), REPLY); // So would this.
    await clock.passed(isSilent ? 1_000 : 0);
    assertEquals(await isSettled(peers.outcome), false);
    if (isSilent) await clock.passed(50);
    else peers.there.close();
    assertEquals(await peers.outcome, "hello");
  });
}

/** What a server sends before its end, and an error's type. */
const SIZES = [
  [LARGEST, undefined],
  ["", UnexpectedEof],
  [`${LARGEST}x`, InvalidData],
] as const;
for (const [text, type] of SIZES) {
  net.test(`exchange: a greeting has 1 to 65,536 bytes (${text.length})`, async () => {
    using peers = await exchanging();
    await end(peers.there, text);
    const replied = rest(peers.there).catch(() => ""); // It may be a reset.
    assertEquals(await replied, type ? "" : REPLY);
    peers.there.close();
    const outcome = await peers.outcome;
    assert(type ? outcome instanceof type : outcome === text);
    assertEquals(peers.greetings.length, type ? 0 : 2);
  });
}

net.test("exchange: the server has 10 s for all of it together", async () => {
  using clock = fakeClock();
  using peers = await exchanging();
  for (let i = 0; i < 5; i++) {
    await clock.passed(2_000);
    assertEquals(await isSettled(peers.outcome), false);
    await send(peers.there, "x"); // It is not silent,
    await peers.nextRead();
  }
  await clock.passed(50); // but slow.
  assertEquals(nameOf(await peers.outcome), "TimeoutError");
  assertEquals(await rest(peers.there), "");
});

for (const timeout of [100, Infinity]) {
  net.test(`exchange: the time of callbacks is not the server's (${timeout})`, async () => {
    using clock = fakeClock();
    const connected = Promise.withResolvers<void>();
    const greeted = Promise.withResolvers<void>();
    using peers = await exchanging({
      timeout,
      onConnect: () => connected.promise,
      onGreeting: () => greeted.promise,
    });
    await clock.passed(60_000);
    connected.resolve();
    await turn();
    await clock.passed(timeout === Infinity ? 1_000_000 : 50);
    await end(peers.there, "hello");
    await until("it is read", () => peers.greetings.length > 0);
    await clock.passed(60_000);
    greeted.resolve();
    assertEquals(await rest(peers.there), REPLY);
    peers.there.close();
    assertEquals(await peers.outcome, "hello");
  });
}

for (const timeout of [0, -1, NaN, "5000", null]) {
  Deno.test(`exchange: a timeout of ${timeout} is refused before it connects`, async () => {
    using _ = replace(Deno, "connect", () => fail(new Error("it connected")));
    const options = { timeout } as ExchangeOptions;
    await assertRejects(() => exchange(options), RangeError, "timeout");
  });
}

Deno.test("exchange: an error in the greeting says what had come of it", async () => {
  const { read } = cutAfter("hel", errorNamed("ConnectionReset"));
  const error = await errorOf(exchangeWith(fake({ read }))) as Error;
  assertEquals([nameOf(error), "soFar" in error && error.soFar], [
    "ConnectionReset",
    "hel",
  ]);
});

Deno.test("exchange: time is up where it connects never, or too late", async () => {
  const peer = fake(reads("hello"));
  for (const ends of [fail, () => peer]) {
    const connect = ({ signal }: { signal: AbortSignal }) =>
      once(signal, "abort").then(() => ends(signal.reason));
    using _ = replace(Deno, "connect", connect);
    const told = await errorOf(exchange({ timeout: 1 }));
    assertEquals(`${told}`, "TimeoutError: time is up");
  }
  await turn();
  assertEquals(peer.events, ["close"]);
});

for (const name of ["onConnect", "onGreeting"]) {
  Deno.test(`exchange: where ${name} fails, so does it, and closes`, async () => {
    const peer = fake(reads("hello"));
    const given = exchangeWith(peer, { [name]: () => fail(MINE) });
    assert(await errorOf(given) === MINE);
    assertEquals(peer.events, ["close"]);
  });
}

Deno.test("exchange: what connects in the very turn of its time's end is closed", async () => {
  const peer = fake();
  const { promise, resolve } = Promise.withResolvers<Deno.TcpConn>();
  using _connect = replace(Deno, "connect", () => promise);
  const inTurn = (fn: () => void) =>
    setRealTimeout(() => {
      fn();
      resolve(peer);
    }, 0);
  using _timer = replace(globalThis, "setTimeout", inTurn);
  assertEquals(nameOf(await errorOf(exchange({ timeout: 1 }))), "TimeoutError");
  assertEquals(peer.events, ["close"]);
});

Deno.test("exchange: a connection to itself is a refusal, and closed", async () => {
  const itself = fake({ remoteAddr: address(8888) });
  const given = exchangeWith(itself, { onConnect: () => fail(MINE) });
  await assertRejects(() => given, ConnectionRefused, "itself");
  assertEquals(itself.events, ["close"]);
});

// client.ts, the command

Deno.test("client.ts: it prints what is said on one line each", async () => {
  const line = "client.ts --reply one\x1b\ntwo\n";
  const { out } = await outcomeOf(line, [fake(reads("good\tday\r\n"))]);
  const [, ...lines] = out;
  assertEquals(lines, ["Greeting: good\\tday", "Replied: one\\u001b\\ntwo"]);
});

const FINAL = [Deno.errors.NotCapable, TypeError, RangeError, URIError];
for (const type of [ConnectionRefused, BrokenPipe, Error, ...FINAL]) {
  Deno.test(`client.ts: it tries to connect for --wait (${type.name})`, async () => {
    for (const wait of [0, 0.12]) {
      const times: number[] = [];
      const fails = () => fail(times.push(performance.now()) && new type("no"));
      const tries = Array(9).fill(fails);
      const { code, err } = await outcomeOf(`client.ts --wait=${wait}`, tries);
      const isRetried = wait > 0 && !FINAL.some((final) => final === type);
      const took = times.at(-1)! - times[0]!;
      const isSo = isRetried ? took >= 119 && times.length < 4 : !times[1];
      assert(isSo && code === 1, `${times}, ${code}, ${err}`);
    }
  });
}

const NO_END = "the greeting of S has not ended in time: it ends when the " +
  "server closes, half-closes, or is silent for two seconds; so far it is: ";
const SILENT = "S sent nothing in time; it may wait for the client to speak " +
  "first";
const SLOW = "S took too long; give it more time with --timeout SECONDS";
const DEAF = { ...reads("hi"), write: () => new Promise(nothing) };
/** What a server does, and what the client says of it. */
const COMPLAINTS: [peer: Deno.TcpConn, line: string][] = [
  [fake(), SILENT],
  [fake({}, "hello\x1b\n"), `${NO_END}hello\\u001b`],
  [fake(DEAF), SLOW],
  [fake(reads()), "S closed without a greeting"],
  [fake(reads(LARGEST, "x")), "S sent a greeting longer than 65536 bytes"],
  [fake(failing("read", "ECONNRESET")), "S reset the connection"],
];
for (const [peer, said] of COMPLAINTS) {
  Deno.test(`client.ts: what is wrong is one line, after its own: ${said}`, async () => {
    const line = "client.ts --timeout=0.05 --wait=9"; // which is over then
    const { code, out, err } = await outcomeOf(line, [peer]);
    const lines = err.map((line) => line.replace("127.0.0.1:8888", "S"));
    assertEquals([code, lines], [1, [`error: ${said}`]]);
    assertEquals(out[0], "Connected to 127.0.0.1:7");
  });
}

Deno.test("client.ts: what has no code of the system is a mistake, and thrown", async () => {
  const peer = fake(failing("read", "mine"));
  await using command = run("client.ts", [peer]);
  await assertRejects(command.code, Error, "mine");
  assertEquals([command.err.all, peer.events], [[], ["close"]]);
});

const ADDRESSES = "; ::1 and 127.0.0.1 are two addresses: --host localhost " +
  "tries both, where the system knows both";
const ANOTHER = "; or it listens on another address: see its --host";
const HOSTS: Record<string, string> = {
  ...{ "127.0.0.1": ADDRESSES, "::1": ADDRESSES },
  ...{ localhost: "", "192.0.2.1": ANOTHER, "a.example": ANOTHER },
};
for (const [host, hint] of Object.entries(HOSTS)) {
  Deno.test(`client.ts: a refusal says where else to look (${host})`, async () => {
    const { err } = await outcomeOf(`client.ts --host ${host}`, [refuse]);
    const name = host.includes(":") ? `[${host}]` : host;
    const said = `error: nothing listens on ${name}:8888; start the server, ` +
      `or use --wait SECONDS${hint}`;
    assertEquals(err, [said]);
  });
}

// Both commands

/** Texts, and how they are shown. */
const SHOWN = {
  [`${TEXT}'"\\`]: `${TEXT}'"\\`,
  "one\r\n\ttwo\n": "one\\r\\n\\ttwo\\n",
  "\0\x1b[2J\x7f\x9b": "\\u0000\\u001b[2J\\u007f\\u009b",
  "\u2028\u2029\u202e": "\\u2028\\u2029\\u202e",
  "\u2066\u061c\ufeff": "\\u2066\\u061c\\ufeff",
};
for (const [text, shown] of Object.entries(SHOWN)) {
  Deno.test(`printable: what a terminal obeys becomes an escape (${shown})`, () => {
    assertEquals([printable(text), client.printable(text)], [shown, shown]);
  });
}

const A = "[::1]:65535";
const REFUSALS: [script: string, name: string, line: string][] = [
  ["server.ts", "PermissionDenied", `on ${A}; choose a`],
  ["server.ts", "AddrNotAvailable", `${A} is not an address of this machine;`],
  ["server.ts", "TimedOut", `cannot listen on ${A}: no`],
  ["client.ts", "TimedOut", `cannot reach ${A}: no`],
  ["client.ts", "EHOSTUNREACH", "firewall, or on macOS the permission for the"],
];
for (const [script, name, part] of REFUSALS) {
  Deno.test(`both: a refusal says what to do (${script}, ${name})`, async () => {
    const refuses = ({ hostname, port }: Deno.NetAddr) => {
      assertEquals([hostname, port], ["::1", 65_535]);
      return fail(errorNamed(name));
    };
    // Of a repeated flag the last one counts.
    const line = `${script} --timeout .5 --host=[::1] --port 1 -p 065535`;
    const { code, out, err } = await outcomeOf(line, refuses);
    assertEquals([code, out, err.length], [1, [], 1]);
    assert(err[0]!.startsWith("error: ") && err[0]!.includes(part), err[0]);
    assertEquals(err[0]!.includes("firewall"), name === "EHOSTUNREACH");
  });
}

/** Command lines, and what is said of them. */
const WRONG: Record<string, string> = {
  "client.ts --no-host=x": 'unexpected "--no-host=x"',
  "client.ts --reply --quiet": "--reply needs a value: --reply=VALUE",
  "server.ts --host=": "--host needs a value: --host=VALUE",
  "client.ts --quiet=no": "--quiet takes no value",
  "client.ts --quiet false": "--quiet takes no value",
  "client.ts --q=8": "--quiet takes no value",
  "client.ts -qp8": "--quiet takes no value",
  "server.ts --port 65536": 'a whole number from 0 to 65535, not "65536"',
  "server.ts --port 80.5": 'a whole number from 0 to 65535, not "80.5"',
  "server.ts --timeout 0": 'must be a number from 0.001 to 2147483, not "0"',
  "server.ts --max-clients 0": "clients must be a whole number from 1 to 900",
  "client.ts --port 0": 'port must be a whole number from 1 to 65535, not "0"',
  "client.ts --timeout .": 'a number from 0.001 to 2147483, not "."',
  "client.ts --wait=-1": 'wait must be a number from 0 to 2147483, not "-1"',
};
for (const [line, part] of Object.entries(WRONG)) {
  Deno.test(`both: a wrong command line is named, and gives 2 (${line})`, async () => {
    const { code, out, err } = await outcomeOf(line, () => fail(MINE));
    assertEquals([code, out, err.length], [2, [], 1]);
    assert(/^error: .*; see --help$/.test(err[0]!), err[0]);
    assert(err[0]!.includes(part), err[0]);
  });
}

for (const script of ["server.ts", "client.ts"]) {
  Deno.test(`both: it ends when its error is said, or can't be (${script})`, async () => {
    await using command = run(`${script} --nosuch`);
    const reader = Promise.withResolvers<void>();
    command.err.gate = reader.promise;
    assertEquals(await isSettled(command.code()), false);
    reader.reject(new BrokenPipe("closed"));
    assertEquals(await command.code(), 2);
  });

  Deno.test(`both: the flags in the help are those that are taken (${script})`, async () => {
    const { out } = await outcomeOf(`${script} --help`);
    const help = out.join("\n").split("usage:")[1]!;
    const named = help.match(/(?<= )--?[a-z][a-z-]*(?=[, ])/g)!
      .filter((flag) => flag !== "--allow-net");
    // Every word of the scripts is tried: a flag has its name from there.
    const words = `${textOfServer} ${textOfClient}`.match(/[a-z][a-z-]*/g)!;
    const candidates = new Set(words.map((word) => `--${word}`));
    for (const letter of "abcdefghijklmnopqrstuvwxyz") {
      candidates.delete(`--${letter}`); // The parser takes it for the other.
      candidates.add(`-${letter}`);
    }
    const taken = [];
    for (const flag of candidates) {
      const { err } = await outcomeOf(`${script} ${flag} 0 --help`, []);
      if (!err[0]?.includes(`unexpected "${flag}"`)) taken.push(flag);
    }
    assertEquals(taken.toSorted(), named.toSorted());
  });
}

// What the tests share

type Handler = (client: Peer) => unknown;
type Fake = ReturnType<typeof fake>;
type WithPeer = Awaited<ReturnType<typeof withPeer>>;
/** What a fake gives: a connection, now or later. A function may throw. */
// deno-lint-ignore no-explicit-any
type Given = Deno.TcpConn | Promise<Deno.TcpConn> | ((options: any) => any);

/** Of the running test: what nobody awaited fails it, what is left is cleared. */
const unawaited: unknown[] = [];
let leftovers = new DisposableStack();
for (const type of ["error", "unhandledrejection"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // or it would cancel all other tests
    const { reason, error } = event as PromiseRejectionEvent & ErrorEvent;
    unawaited.push(reason ?? error);
  });
}
Deno.test.afterEach(async () => {
  await turn();
  leftovers.dispose();
  leftovers = new DisposableStack();
  for (const error of unawaited.splice(0)) throw error;
});

const turn = () => new Promise<void>((resolve) => setRealTimeout(resolve, 0));

/** Gives what the promise gives, within two seconds. */
function inTime<T>(what: string, promise: Promise<T>): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const fails = () => reject(new Error(`waited 2 s for ${what}`));
  const timer = setRealTimeout(fails, 2_000);
  leftovers.defer(() => clearTimeout(timer));
  const inTime = Promise.race([promise, late])
    .finally(() => clearTimeout(timer));
  inTime.catch(nothing); // It may be awaited later.
  return inTime;
}

/** Waits until it is so, two seconds at most. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const end = Date.now() + 2_000; !isSo(); await turn()) {
    if (Date.now() > end) throw new Error(`waited 2 s until ${what}`);
  }
}

/** Whether it settles within so many milliseconds, or in the next turn. */
async function isSettled(promise: Promise<unknown>, most = 0) {
  const { promise: late, resolve } = Promise.withResolvers<boolean>();
  const timer = setRealTimeout(resolve, most, false);
  const settled = promise.then(() => true, () => true);
  return await Promise.race([settled, late]).finally(() => clearTimeout(timer));
}

/** What the promise rejects with. */
function errorOf(promise: Promise<unknown>): Promise<unknown> {
  const isFine = () => fail(new Error("there was no error"));
  return inTime("an error", promise.then(isFine, (error) => error));
}

/** What happened, in order, to be waited for one by one. */
class Events<T> {
  readonly all: T[] = [];
  #taken = 0;

  readonly push = (event: T): unknown => this.all.push(event);

  async next(what = "the next one is there"): Promise<T> {
    await until(what, () => this.all.length > this.#taken);
    return this.all[this.#taken++]!;
  }
}

/** A clock that only the test moves, with the intervals that look at it. */
function fakeClock() {
  let time = Math.round(performance.now()); // so that sums are exact
  const looks = new Map<unknown, () => void>();
  const [setReal, clearReal] = [setInterval, clearInterval];
  let isHeld = true; // Real ones, as they may outlive the clock by a look.
  const set = (look: () => void, delay: number) => {
    assertEquals(delay, 50);
    const id = setReal(() => isHeld || look(), delay);
    looks.set(id, look);
    return id;
  };
  const clear = (id: number) => {
    looks.delete(id);
    clearReal(id);
  };
  const replaced = new DisposableStack();
  replaced.defer(() => isHeld = false);
  replaced.use(replace(performance, "now", () => time));
  replaced.use(replace(globalThis, "setInterval", set));
  replaced.use(replace(globalThis, "clearInterval", clear));
  const pass = (milliseconds: number, step = 50) => {
    for (let left = milliseconds; left > 0; left -= step) {
      time += Math.min(left, step);
      looks.forEach((look) => look());
    }
  };
  /** Also waits until what that leads to is done. */
  const passed = async (milliseconds: number) => {
    pass(milliseconds);
    for (let i = 0; i < 3; i++) await turn();
  };
  return Object.assign(replaced, { looks, pass, passed });
}

/** The delays of the timers that are set until the end of the block. */
function timers(change = (delay: number) => delay) {
  const delays: number[] = [];
  const set = (fn: (one: unknown) => void, delay = 0, one?: unknown) => {
    delays.push(delay);
    return setRealTimeout(fn, change(delay), one);
  };
  return { delays, ...replace(globalThis, "setTimeout", set) };
}

/** Replaces a property until the end of the block. */
function replace<T extends object>(object: T, name: keyof T, value: unknown) {
  const original = object[name];
  object[name] = value as never;
  return { [Symbol.dispose]: () => void (object[name] = original) };
}

/** A connection that is silent, after what it says, and takes what is written. */
function fake(fields: object = {}, says = "") {
  const events: string[] = [];
  const { promise: cut, reject } = Promise.withResolvers<never>();
  cut.catch(nothing);
  const note = (event: string) => {
    if (events.includes("close")) throw new BadResource("closed");
    events.push(event);
  };
  const close = () => {
    note("close");
    reject(new Interrupted("closed"));
  };
  const connection = {
    events,
    localAddr: address(8888),
    remoteAddr: address(7),
    read: (room: Uint8Array) => {
      const [said, isSilent] = [says, says === ""];
      says = "";
      return isSilent ? cut : reads(said).read(room);
    },
    write: async ({ length }: Uint8Array) => {
      note(`write ${length}`);
      return await length;
    },
    closeWrite: async () => await note("closeWrite"),
    setNoDelay: (value = true) => note(`setNoDelay ${value}`),
    close,
    [Symbol.dispose]: () => events.includes("close") || close(),
    ...fields,
  };
  return connection as unknown as Deno.TcpConn & { events: string[] };
}
const fakes = (length: number) => Array.from({ length }, () => fake());

/** A connection as over TLS, without `setNoDelay`. */
function fakeTls(fields: object = {}): Deno.TcpConn {
  const { setNoDelay: _, ...connection } = fake(fields);
  return connection as unknown as Deno.TcpConn;
}

/** A method that rejects with this error. */
function failing(method: string, name: string) {
  return { [method]: () => Promise.reject(errorNamed(name)) };
}

/** A source of these, one a read as far as they fit, then of the end once. */
function reads(...pieces: (string | Uint8Array)[]) {
  const left = pieces.map((one) => typeof one === "string" ? encode(one) : one)
    .filter(({ length }) => length > 0);
  const rooms: Uint8Array[] = []; // that it was given
  let next = 0;
  const read = async (room: Uint8Array): Promise<number | null> => {
    rooms.push(room);
    if (next > left.length) throw new Error("it read after the end");
    const piece = left[next] ?? new Uint8Array(0);
    const taken = piece.subarray(0, room.length);
    room.set(taken);
    left[next] = piece.subarray(taken.length);
    if (taken.length === piece.length) next++;
    return await taken.length || null;
  };
  return { read, rooms };
}

/** A source that gives this, and then fails. */
function cutAfter(text: string, error: Error) {
  const { read } = reads(text);
  return { read: async (room: Uint8Array) => await read(room) ?? fail(error) };
}

/** Sources of the text: byte by byte, and in two reads, cut at each place. */
function waysToCut(text: string) {
  const bytes = encode(text);
  const single = Array.from(bytes, (byte) => Uint8Array.of(byte));
  const cuts = single.map((_, i) => [bytes.slice(0, i), bytes.slice(i)]);
  return [single, ...cuts].map((pieces) => reads(...pieces));
}

/** A listener that gives these, one by one. */
function listenerOf(given: Given[]): Deno.TcpListener {
  const { promise: closed, reject } = Promise.withResolvers<never>();
  closed.catch(nothing);
  const close = () => reject(new BadResource("closed"));
  const left = [...given];
  const accept = async () => {
    const next = left.shift() ?? closed;
    return await (typeof next === "function" ? next({}) : next);
  };
  const own = { addr: address(9), accept, close, [Symbol.dispose]: close };
  return own as unknown as Deno.TcpListener;
}

/** An error of Deno's, of the web's, or of the system's, by its name or code. */
function errorNamed(name: string): Error {
  if (name.endsWith("tError")) return new DOMException("no", name);
  const type = Deno.errors[name as "TimedOut"] ?? Error;
  const error = new type(type === Error ? name : "no");
  return Object.assign(error, /^E/.test(name) && { code: name });
}

const refuse = () => Promise.reject(new ConnectionRefused("no"));

const listen = () => Deno.listen({ hostname: "127.0.0.1", port: 0 });
const dial = ({ addr: { port } }: { addr: Deno.NetAddr }) =>
  inTime("a connection", Deno.connect({ port }));
const accept = (listener: Deno.TcpListener) =>
  inTime("a client", listener.accept());

/** Both ends of a connection. */
async function connected() {
  using listener = listen();
  const both = [dial(listener), accept(listener)] as const;
  const [here, there] = await Promise.all(both);
  const ends = new DisposableStack();
  return Object.assign(ends, { here: ends.use(here), there: ends.use(there) });
}

/** All that comes, to the end, read without a `Peer`. */
const rest = (connection: Deno.TcpConn) =>
  inTime("the end of what comes", readToEnd(connection));
async function readToEnd(connection: Deno.TcpConn): Promise<string> {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const buffer = new Uint8Array(65_536);
  let text = "";
  for (let count; (count = await connection.read(buffer)) !== null;) {
    text += decoder.decode(buffer.subarray(0, count), { stream: true });
  }
  return text + decoder.decode();
}

/** Sends all of the text, without a `Peer`. */
const send = (connection: Deno.TcpConn, text: string) =>
  inTime("a write", writeAll(connection, encode(text)));
async function writeAll(connection: Deno.TcpConn, bytes: Uint8Array) {
  while (bytes.length > 0) {
    bytes = bytes.subarray(await connection.write(bytes));
  }
}
/** Sends a text, and half-closes. */
const end = (peer: Deno.TcpConn, text = "") =>
  send(peer, text).then(() => peer.closeWrite());

/** A client sends a text and resets, where it is accepted after that. */
async function reset(
  { addr }: { addr: Deno.NetAddr },
  text = "",
  accepted?: Promise<Deno.TcpConn>,
) {
  const socket = connectNode({ port: addr.port, host: addr.hostname });
  await inTime("a connection", once(socket.on("error", nothing), "connect"));
  const peer = await accepted;
  const sent = new Promise((resolve) => socket.write(text, resolve));
  await inTime("what it sends", sent);
  await inTime("its reset", once(socket.resetAndDestroy(), "close"));
  return peer as Deno.TcpConn;
}

/** A server under test, on a free port or with fakes, its clients, its errors. */
function start(options: Partial<ServeOptions> = {}, given?: Given[]) {
  const errors = new Events<unknown>();
  const accepted = new Events<Peer>();
  const listener = given ? listenerOf(given) : listen();
  const running = serve({
    onError: errors.push,
    ...options,
    listener,
    handler: (client) => {
      accepted.push(client);
      return options.handler?.(client);
    },
  });
  const { shutdown: end } = running;
  const shutdown = (grace?: number) => inTime("the end", end(grace));
  const told = () => errors.all.map(String);
  // It does not fail: that is for the tests of the end.
  const dispose = async () => void await isSettled(end(0), 100);
  const own = { accepted, listener, shutdown, told };
  return Object.assign(running, { ...own, [Symbol.asyncDispose]: dispose });
}

/** A Peer over there, with the other end as it is, and a clock to move. */
async function withPeer() {
  const clock = leftovers.use(fakeClock());
  const { here, there } = leftovers.use(await connected());
  const peer = ending(new Peer(there, { timeout: 1_000 }));
  const { looks, pass } = clock;
  return { looks, pass, peer, here, there };
}

/** A Peer of a fake. */
function over(source: object = {}, options?: PeerOptions): Peer {
  return ending(new Peer(fake(source), options));
}

/** It ends with its test, or ten seconds later, so that no call waits for good. */
function ending(peer: Peer): Peer {
  const fails = () => peer.end(new Error("waited 10 s for a peer"));
  const timer = setRealTimeout(fails, 10_000);
  leftovers.defer(() => clearTimeout(timer));
  leftovers.defer(() => peer.end(ENOUGH));
  return peer;
}

/** The next line of a loop, or `null` where it ends. */
async function nextOf(peer: Peer): Promise<string | null> {
  return (await peer[Symbol.asyncIterator]().next()).value ?? null;
}

/** Waits until the system takes no more of what is sent. */
async function untilStill(peer: Peer): Promise<void> {
  let before: number;
  do {
    before = peer.queued;
    for (let i = 0; i < 20; i++) await turn();
  } while (peer.queued !== before);
}

/** A handler that waits for its end. */
const untilEnded = ({ signal }: Peer) =>
  new Promise((resolve) => signal.onabort = resolve);

/** What `showError` prints. */
async function linesOf(error: unknown, fields?: object): Promise<string[]> {
  using stderr = capture("stderr");
  showError(error, new Peer(fake(fields)));
  await turn();
  return stderr.all;
}

/** All optional options, of `serve` and of `exchange`, without a value. */
const UNSET = {
  handler: nothing,
  ...{ hostname: undefined, port: undefined, listener: undefined },
  ...{ timeout: undefined, limit: undefined, noDelay: undefined },
  ...{ maxClients: undefined, onError: undefined, signal: undefined },
  ...{ reply: undefined, onConnect: undefined, onGreeting: undefined },
};

/** The exchange with a connection that is given. */
async function exchangeWith(peer: Deno.TcpConn, options: ExchangeOptions = {}) {
  using _ = replace(Deno, "connect", () => Promise.resolve(peer));
  return await inTime("the exchange", exchange(options));
}

/** The exchange, under way with `there`: its reads, its greeting, its outcome. */
async function exchanging(options: ExchangeOptions = {}) {
  using listener = listen();
  const { connect } = Deno;
  const reads = new Events<number | null>();
  const observed = async (options: Deno.ConnectOptions) => {
    const connection = await connect(options);
    const read = connection.read.bind(connection);
    connection.read = async (room) => {
      const count = await read(room);
      reads.push(count);
      return count;
    };
    return connection;
  };
  using _ = replace(Deno, "connect", observed);
  const greetings: unknown[] = [];
  const exchanged = exchange({
    ...options,
    port: listener.addr.port,
    onGreeting: (greeting, isWhole) => {
      greetings.push(greeting, isWhole);
      return options.onGreeting?.(greeting, isWhole);
    },
  });
  const settled = exchanged.then((text): unknown => text, (error) => error);
  const there = await accept(listener);
  for (let i = 0; i < 3; i++) await turn(); // until it reads
  return {
    ...{ there, greetings },
    nextRead: () => reads.next("a read").then(turn), // and it is dealt with
    get outcome() {
      return inTime("the outcome", settled);
    },
    [Symbol.dispose]: () => there[Symbol.dispose](),
  };
}

/** The lines that are written, until the end of the block. */
function capture(name: "stdout" | "stderr") {
  const lines = new Events<string>();
  const decoder = new TextDecoder();
  let text = "";
  const sink = Object.assign(lines, {
    gate: undefined as Promise<void> | undefined, // what a write waits for
    async write(bytes: Uint8Array): Promise<number> {
      await sink.gate;
      const all = (text + decoder.decode(bytes, { stream: true })).split("\n");
      text = all.pop()!;
      all.forEach(lines.push);
      return bytes.length;
    },
  });
  return Object.assign(sink, replace(Deno, name, sink));
}

/** Stop signals that only the test sends, until the end of the block. */
function stopSignals() {
  const listeners = new Map<string, () => void>();
  const add = (name: string, fn: () => void) => listeners.set(name, fn);
  const remove = (name: string) => listeners.delete(name);
  const replaced = new DisposableStack();
  replaced.use(replace(Deno, "addSignalListener", add));
  replaced.use(replace(Deno, "removeSignalListener", remove));
  const send = (name: string) => listeners.get(name)?.();
  return Object.assign(replaced, { send, names: () => [...listeners.keys()] });
}

/** A command under way, on real sockets or with what is given to either script. */
function run(
  line: string,
  given?: Given[] | ((options: Deno.NetAddr) => never),
) {
  const replaced = new DisposableStack();
  const { send: signal, names } = replaced.use(stopSignals());
  const out = replaced.use(capture("stdout"));
  const err = replaced.use(capture("stderr"));
  const connect = async (options: Deno.ConnectOptions) => {
    const next = (given as Given[]).shift();
    return await (typeof next === "function" ? next(options) : next);
  };
  if (given) {
    const isList = Array.isArray(given);
    const listen = isList ? () => listenerOf(given) : given;
    replaced.use(replace(Deno, "listen", listen));
    replaced.use(replace(Deno, "connect", isList ? connect : given));
  }
  const [script, ...flags] = line.split(" ");
  const end = (script === "server.ts" ? server : client).main(flags);
  end.catch(nothing); // It may fail in a test that has failed.
  const code = () =>
    inTime("the command's end", end).catch((error) => {
      error.message += `; on stderr: ${err.all.join("\n")}`;
      throw error;
    });
  const ends = async (expected: number, said: string[] = []) => {
    const actual = { code: await code(), err: err.all };
    assertEquals(actual, { code: expected, err: said });
  };
  const dispose = async () => {
    if (!await isSettled(end)) signal("SIGINT");
    await isSettled(end, 100);
    replaced.dispose();
  };
  const own = { out, err, signal, names, code, ends };
  return { ...own, [Symbol.asyncDispose]: dispose };
}

/** What comes of a command that ends by itself. */
async function outcomeOf(...all: Parameters<typeof run>) {
  await using command = run(...all);
  const code = await command.code();
  return { code, out: command.out.all, err: command.err.all };
}

function fail(error: unknown): never {
  throw error;
}
function encode(text: string) {
  return new TextEncoder().encode(text);
}
function decode(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes);
}
function nothing(): void {}
function address(port: number): Deno.NetAddr {
  return { transport: "tcp", hostname: "127.0.0.1", port };
}
function controlled() {
  const controller = new AbortController();
  const abort = (reason: unknown) => controller.abort(reason);
  return { signal: controller.signal, abort };
}
const nameOf = (error: unknown) => (error as Error).name;
const listenersOn = (signal: AbortSignal) =>
  getEventListeners(signal, "abort").length;
