/**
 * What `server.ts` and `client.ts` promise: one rule a test, in the order in which
 * they stand in `server.ts`, then those of `client.ts`, then what both have, and last
 * the fakes, beside the real thing.
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

import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertRejects, assertThrows } from "@std/assert";
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

net.test("greet: the greeting is whole, and ends its half, not the client's", async () => {
  using pair = await connected();
  const replied = greet(new Peer(pair.there), MORE_THAN_BUFFERS);
  assert(await rest(pair.here) === MORE_THAN_BUFFERS);
  await send(pair.here, "still ");
  await end(pair.here, "here");
  assertEquals(await inTime("the reply", replied), "still here");
});

Deno.test("greet: it sends, half-closes, reads to the peer's limit, and does not close", async () => {
  const [whole, tooLong] = [fake(reads(LARGEST)), fake(reads(LARGEST, "x"))];
  assertEquals(await greet(new Peer(whole), encode(GREETING)), LARGEST);
  const given = greet(new Peer(tooLong), GREETING);
  await assertRejects(() => given, InvalidData, "65537 bytes, at most 65536");
  const events = ["setNoDelay true", "write 32", "closeWrite"];
  assertEquals([whole.events, tooLong.events], [events, events]);
});

for (const reply of ["a reply", ""]) {
  net.test(`greet: a client that left before is heard (it left "${reply}")`, async () => {
    using pair = await connected();
    await send(pair.here, reply);
    pair.here.close();
    const replied = greet(new Peer(pair.there), GREETING);
    assertEquals(await inTime("the reply", replied), reply);
  });
}

net.test("greet: a client that reset has not replied", async () => {
  using listener = listen();
  using peer = await reset(listener, "a reply", accept(listener));
  const replied = inTime("it", greet(new Peer(peer), GREETING));
  await assertRejects(() => replied, ConnectionReset);
});

for (const method of ["write", "closeWrite"]) {
  for (const name of ["BrokenPipe", "NotConnected", "TimedOut", "EPIPE"]) {
    Deno.test(`greet: it reads on only from who is gone (${name} of ${method})`, async () => {
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

/** What is refused, with an error that names it. */
const REFUSED: Record<string, unknown>[] = [
  ...[undefined, "nothing"].map((handler) => ({ handler })),
  ...[0, 1.5, NaN, "9"].map((maxClients) => ({ maxClients })),
  ...[{ timeout: 0 }, { limit: 0 }], // more of these in the tests of Peer
  { signal: AbortSignal.abort(new RangeError("signal")) },
];
for (const wrong of REFUSED) {
  const [[name, value]] = Object.entries(wrong) as [[string, unknown]];
  const text = `${typeof value} ${value}`;
  Deno.test(`serve: a wrong ${name} is refused before it listens; a listener is closed (${text})`, async () => {
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
    const onError = (_: unknown, one: Peer<Deno.Conn>) => one.connection;
    serve(UNSET).addr satisfies Deno.NetAddr;
    serve({ handler: (one) => one.connection.setNoDelay(), onError });
    serve({ listener: tls, handler: overTls, onError }).addr.port;
    serve({ listener: tls, handler: (one) => one.connection.handshake() });
    serve({ listener: unix, handler: (one) => one.connection.remoteAddr.path })
      .addr.path;
    serve({ listener: either, handler: (one) => greet(one, "hi") }).addr.port;
    // @ts-expect-error: a TCP connection has no handshake
    serve({ handler: overTls });
    // @ts-expect-error: nor has it one where the listener is none
    serve({ listener: undefined, handler: overTls });
    // @ts-expect-error: a TLS connection has no `setNoDelay`
    serve({ listener: tls, handler: (one) => one.connection.setNoDelay() });
    // @ts-expect-error: and so it may have none
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
  Deno.test(`serve: with maxClients ${most} it serves so many at once; others wait`, async () => {
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

net.test("serve: a client counts until its close, also while what it still sends is dropped", async () => {
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

Deno.test("serve: beside 100 peers that never shake hands, others are served", async () => {
  const hangs = { write: () => new Promise(nothing) };
  const peers = Array.from({ length: 100 }, () => fakeTls(hangs));
  const heard = new Events<string>();
  const handler = async (client: Peer) => heard.push(await client.readAll());
  await using _ = start({ handler }, [...peers, fakeTls(reads("hello"))]);
  assertEquals(await heard.next("what the last one says"), "hello");
});

Deno.test("serve: each 32nd client is written nothing to before it is served", async () => {
  const writable = Promise.withResolvers<number>();
  const written: string[] = [];
  const peers = Array.from({ length: 65 }, (_, i) => {
    const write = ({ length }: Uint8Array) => {
      written.push(`${length} bytes to ${i + 1}`);
      return writable.promise;
    };
    return fake({ write });
  });
  await using running = start({}, peers);
  const { all } = running.accepted;
  await turn();
  assertEquals([all.length, written], [31, ["0 bytes to 32"]]);
  writable.resolve(0);
  await turn();
  assertEquals([all.length, written], [65, ["0 bytes to 32", "0 bytes to 64"]]);
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

const SHORT = "EMFILE ENFILE ENOBUFS ENOMEM";
for (const name of `${ONE_IS_LOST} ${SHORT}`.split(" ")) {
  const isLost = ONE_IS_LOST.includes(name);
  const how = isLost ? "at once" : "with a pause, which is said once a minute";
  Deno.test(`serve: after ${name}, accepting goes on ${how}`, async () => {
    using clock = fakeClock();
    using timer = timers(() => 20);
    using stderr = capture("stderr");
    const error = errorNamed(name);
    const times: number[] = [];
    const fails = [0, 59_999, 1].map((milliseconds) => () => {
      times.push(Date.now());
      clock.pass(milliseconds, Infinity);
      return fail(error);
    });
    await using running = start({}, [...fails, fake()]);
    await running.accepted.next();
    assertEquals(timer.delays, isLost ? [] : [100, 100, 100]);
    assert(isLost || times[2]! - times[0]! >= 38, "it waits for the pauses");
    const said = `error: ${NO_CLIENT}: ${error.message}`;
    assertEquals(stderr.all, isLost ? [] : [said, said]);
  });
}

for (const error of [errorNamed("TimedOut"), MINE, "text", null, undefined]) {
  Deno.test(`serve: after any other error, also one that is none, it pauses; its stack is shown (${error})`, async () => {
    using timer = timers(() => 0);
    using stderr = capture("stderr");
    await using running = start({}, [() => fail(error), fake()]);
    await running.accepted.next();
    assertEquals(timer.delays, [100]);
    const [line, next] = stderr.all;
    assertEquals(line, `error: ${NO_CLIENT}: ${error}`);
    assertEquals(/^ +at /.test(next ?? ""), error instanceof Error);
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
  Deno.test(`serve: a client of which no Peer can be made is closed, and ends no server (${name})`, async () => {
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

net.test("serve: a shutdown lets its clients finish, accepts no more, leaves nothing", async () => {
  const { signal } = controlled();
  const replies = new Events<string>();
  const handler = async (client: Peer) =>
    replies.push(await greet(client, GREETING));
  await using running = start({ signal, handler });
  using one = await dial(running);
  using two = await dial(running);
  assertEquals([await rest(one), await rest(two)], [GREETING, GREETING]);
  assertEquals([listenersOn(signal), running.clients], [1, 2]);

  const ended = running.shutdown();
  await assertRejects(() => dial(running), Error);
  await end(one, REPLY);
  assertEquals(await replies.next(), REPLY);
  assertEquals(await isSettled(running.finished), false);
  await end(two, REPLY);
  await Promise.all([ended, running.shutdown()]); // twice

  assertEquals([replies.all, listenersOn(signal)], [[REPLY, REPLY], 0]);
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
  const go = Promise.withResolvers<void>();
  await using running = start({ handler: () => go.promise }, [fake(reads())]);
  const client = await running.accepted.next();
  running.listener.close();
  assertEquals(await isSettled(running.finished), false);
  assert(client.isStopping);
  go.resolve();
  await inTime("the end", running.finished);
  assertEquals([running.addr, running.told()], [address(9), []]);
  assertEquals(stderr.all, []);
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
  Deno.test(`serve: a grace ends who is left after it, with a reason (${name})`, async () => {
    using timer = timers();
    await using running = start({ handler: untilEnded }, fakes(2));
    await turn();
    const began = performance.now();
    for (const grace of graces) void running.shutdown(grace as number);
    if (delay !== undefined) await inTime("the end", running.finished);
    await turn();
    assertEquals(timer.delays, delay === undefined ? [] : [delay]);
    assert(performance.now() - began >= (delay ?? 0) - 1);
    const reason = "AbortError: the server shuts down";
    assertEquals(running.told(), delay === undefined ? [] : [reason, reason]);
  });
}

for (const by of ["the grace that is over", "an abort"]) {
  Deno.test(`serve: ${by} closes who has only not left yet, and nobody is told`, async () => {
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

Deno.test("serve: `await using` waits, at the end of the block, for its clients", async () => {
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

for (let steps = 0; steps < 10; steps++) {
  Deno.test(`serve: an abort ends all, also who just came (${steps} microtasks ago)`, async () => {
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

Deno.test("serve: onError is called once, after the close, with the error and the Peer", async () => {
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
const waits: Handler = ({ signal }) => nodeTimeout(60_000, null, { signal });

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
  "ends what waits with node:timers/promises": [(client) => {
    queueMicrotask(() => client.end(ENOUGH));
    return waits(client);
  }, "Error: enough"],
  "awaits a send": [(client) => client.send("x"), "Error: failed"],
  "catches a send": [(client) => client.send("x").catch(nothing)],
  "does not await a send": [(client) => void client.send("x"), "Error: failed"],
  "does not await a send, and throws": [(client) => {
    client.send("x");
    fail(MINE);
  }, "TypeError: mine"],
};
for (
  const name of "ConnectionReset BadResource Interrupted AbortError".split(" ")
) {
  const error = errorNamed(name);
  TOLD[`throws ${name} of its own`] = [() => fail(error), `${error}`];
}
for (const [name, [act, expected]] of Object.entries(TOLD)) {
  Deno.test(`serve: what onError is told, once, of a handler that ${name}`, async () => {
    const peer = fake({ ...failing("write", "failed"), ...reads() });
    await using running = start({ handler: act }, [peer]);
    await running.accepted.next();
    await until("it is left", () => running.clients === 0);
    assertEquals(running.told(), expected ? [expected] : []);
  });
}

Deno.test("serve: nobody waits for an onError, and what it throws is shown with its stack", async () => {
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
  const shown = stderr.all.filter((line) => /Error: mine too/.test(line));
  assertEquals(shown.length, 2);
  assert(stderr.all.some((line) => /^ +at /.test(line)));
});
// Peer: its making

/** Options that a Peer refuses, with an error that names them. */
const WRONG_OPTIONS: Record<string, unknown>[] = [
  ...[0, -1, NaN, "5000", null].map((timeout) => ({ timeout })),
  ...[0, -1, 1.5, NaN, "10", null].map((limit) => ({ limit })),
  { signal: AbortSignal.abort(new RangeError("signal")) },
];
for (const wrong of WRONG_OPTIONS) {
  const [[name, value]] = Object.entries(wrong) as [[string, unknown]];
  net.test(`Peer: a ${name} of ${value} is refused, and the connection closed`, async () => {
    using pair = await connected();
    assertThrows(() => new Peer(pair.there, wrong), RangeError, name);
    assertEquals(await rest(pair.here), "");
  });
}

Deno.test("Peer: where its making fails, it listens to no signal", () => {
  const { signal } = controlled();
  const closed = fake({ setNoDelay: () => fail(MINE) });
  assertThrows(() => new Peer(closed, { signal }), TypeError, "mine");
  assertEquals([closed.events, listenersOn(signal)], [["close"], 0]);
});

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

Deno.test("Peer: lines, so many bytes and the rest, in turn; buffered is what is left", async () => {
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
  assertEquals(await peer.readLine(), "\uFFFDA");
  assertEquals(await peer.readAll(), "\uFFFD");
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
      const whole = call(over(bytesOf(most), { limit }), most);
      assertEquals(await whole, LARGEST.slice(0, most));
      const source = bytesOf(1_000_000);
      const tooLong = call(over(source, { limit }), most + 1);
      await assertRejects(() => tooLong, InvalidData, `at most ${most}`);
      assert(source.left() > 800_000, "it reads on and on");
    }
    const later = over(reads("123456789\n0123456789"), { limit: 10 });
    await later.readLine();
    assertEquals(await call(later, 10), "0123456789"); // Each has its own.
  });

  Deno.test(`Peer: one that comes byte by byte takes time by its bytes (${method})`, async () => {
    const before = cpuUsage(); // not the time, as the machine may be busy
    const peer = over(bytesOf(200_000, 1), { limit: Infinity });
    assertEquals(await call(peer, 200_000), "x".repeat(200_000));
    assert(cpuUsage(before).user < 1_500_000, "microseconds");
  });

  Deno.test(`Peer: one that comes fast is read in 64 KiB (${method})`, async () => {
    for (const most of [4_096, Infinity]) {
      const source = bytesOf(500_000, most);
      await call(over(source, { limit: Infinity }), 500_000);
      const { length } = source.rooms.find(({ length }) => length > 16_384)!;
      assert(length >= 57_344 && length <= 65_536, `${length} bytes`);
      assert(most < Infinity || source.rooms.length < 20);
    }
  });
}

Deno.test("Peer: so are pieces of it", async () => {
  const { rooms, read } = bytesOf(1_000_000);
  const peer = over({ read });
  while (await peer.readSome() !== null);
  assert(rooms.length < 40, `${rooms.length} reads`);
});

Deno.test("Peer: it holds 128 bytes at first, 4 KiB for small messages, and after large ones", async () => {
  for (const [most, size] of [[Infinity, 50_000], [100, 50]] as const) {
    const { rooms, read } = bytesOf(100_000, most);
    const peer = over({ read }, { limit: Infinity });
    while (await peer.hasMore()) await peer.readExactly(size);
    const sizes = rooms.map(({ buffer }) => buffer.byteLength);
    assertEquals([sizes[0], sizes.at(-1)], [128, 4_096]);
    assert(size > 50 || Math.max(...sizes) === 4_096);
  }
});

for (const [method, call] of Object.entries(READS)) {
  net.test(`Peer: a read during a ${method} is a TypeError, and costs it nothing`, async () => {
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
  Deno.test(`Peer: what fails between messages has not ended, ${how} (${method})`, async () => {
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

Deno.test("Peer: TLS without close_notify is no end within a line", async () => {
  const error = new UnexpectedEof("no close_notify");
  assert(await errorOf(nextOf(over(cutAfter("b", error)))) === error);
});

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

net.test("Peer: a stop ends a loop before its next line, which stays to be read", async () => {
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
  net.test(`Peer: a stop lets a read go on, and a loop within a line (${method})`, async () => {
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

net.test("Peer: of several sends, each is whole, in order; then comes the half-close", async () => {
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

Deno.test("Peer: all is sent where a write takes a part; queued is what is left", async () => {
  const [sent, queued] = [[] as number[], [] as number[]];
  const write = async (bytes: Uint8Array) => {
    queued.push(peer.queued);
    sent.push(...bytes.subarray(0, 2));
    return await Math.min(bytes.length, 2);
  };
  const peer = over({ write });
  for (const data of ["one", encode(TEXT)]) await peer.send(data);
  assertEquals(new Uint8Array(sent), encode(`one${TEXT}`));
  assertEquals([queued.slice(0, 2), peer.queued], [[3, 1], 0]);
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

Deno.test("Peer: one that nobody awaits is told after closeWrite, not after the close", async () => {
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

net.test("Peer: a send while more than 16 MiB wait ends the peer", async () => {
  const { peer } = await withPeer();
  const sends = ["x".repeat(2 ** 24), "y"].map((one) => peer.send(one));
  assert(!peer.signal.aborted);
  sends.push(peer.send("z"));
  assert(`${peer.signal.reason}`.includes("too much waits"));
  for (const one of sends) assert(await errorOf(one) === peer.signal.reason);
});

Deno.test("Peer: so does one while 131,072 sends wait", async () => {
  const { promise: gate, reject } = Promise.withResolvers<number>();
  const peer = over({ write: () => gate });
  for (let i = 0; i <= 2 ** 17; i++) peer.send("x"); // The first one is under way.
  const before = peer.signal.aborted;
  peer.send("x");
  const after = peer.signal.aborted;
  reject(MINE); // as it is closed
  await turn();
  assertEquals([before, after], [false, true]);
});

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
    peer.readSome();
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
  Deno.test(`Peer: a failed send is ${isTold ? "" : "not "}told at the close (${what})`, async () => {
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

Deno.test("Peer: a reset that a read has met is not told again, for a send after it", async () => {
  const failed = failing("read", "ConnectionReset");
  const peer = over({ ...failed, ...failing("write", "BrokenPipe") });
  await errorOf(peer.readAll());
  peer.send("x");
  await inTime("the close", peer[Symbol.asyncDispose]());
});

for (const [method, call] of Object.entries(READS)) {
  net.test(`Peer: after a reset that a send has met, there is no end (${method})`, async () => {
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
    for (const milliseconds of [2_000, Infinity]) {
      for (const renew of [() => peer.renew(milliseconds), nothing]) {
        const line = peer.readLine();
        renew();
        pass(Math.min(milliseconds, 60_000));
        await send(here, "one\n");
        assertEquals(await line, "one");
      }
    }
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

Deno.test("Peer: what has failed is waited for no more", async () => {
  using clock = fakeClock();
  const peer = over({ ...reads("said"), ...failing("write", "BrokenPipe") });
  await errorOf(peer.send("x"));
  clock.pass(60_000);
  assertEquals([clock.looks.size, await peer.readAll()], [0, "said"]);
});

net.test("Peer: what comes while the program stands still is read; its timer holds no program", async () => {
  const held: unknown[] = [];
  const { unrefTimer } = Deno;
  const unref = (id: number) => (held.push(id), unrefTimer(id));
  using _ = replace(Deno, "unrefTimer", unref);
  using pair = await connected();
  await using peer = new Peer(pair.there, { timeout: 150 });
  const line = peer.readLine();
  assertEquals(held.length, 1);
  for (const end = Date.now() + 600; Date.now() < end;);
  await send(pair.here, "one\n");
  assertEquals(await line, "one");
  const began = performance.now();
  assertEquals(nameOf(await errorOf(peer.readLine())), "TimeoutError");
  assert(performance.now() - began > 150);
});

Deno.test("Peer: renew refuses what is no number above 0", () => {
  for (const wrong of [0, -1, NaN, "5" as never, null as never]) {
    assertThrows(() => over().renew(wrong), RangeError, "timeout");
  }
});

// Peer: its end

/** Reasons that one may give, among them some that can't be shown. */
const REASONS: Record<string, unknown> = {
  ...{ ENOUGH, undefined, null: null, "a text": "why", zero: 0 },
  "a hostile proxy": new Proxy({}, {
    get: () => fail(MINE),
    getPrototypeOf: () => fail(MINE),
  }),
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

net.test("Peer: its end is told at the close if no call was, which waits for nothing", async () => {
  const { peer } = await withPeer();
  peer.end(MINE);
  const closing = peer[Symbol.asyncDispose]();
  assert(await isSettled(closing) && await errorOf(closing) === MINE);
});

net.test("Peer: the option signal ends it with its reason, and is let go at each close", async () => {
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

net.test("Peer: its close sends what is queued, and drops what comes until the peer's end", async () => {
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

net.test("Peer: its close drops for a second at most what comes from who does not end", async () => {
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
  Deno.test(`Peer: its close has ${most} ms to send, with a timeout of ${timeout}`, async () => {
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
  Deno.test(`onStopSignal: it calls back once; 100 ms later a signal is the system's (${name})`, async () => {
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

Deno.test("onStopSignal: disposing of it, also within the call back, leaves nothing", () => {
  using signals = stopSignals();
  for (const isWithin of [false, true]) {
    const listening = onStopSignal(() => {
      if (isWithin) listening[Symbol.dispose]();
    });
    signals.send("SIGINT");
    for (let i = 0; i < 2; i++) listening[Symbol.dispose]();
    assertEquals(signals.names(), []);
  }
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
  Deno.test(`showError: what may happen on any connection is one line (${name})`, async () => {
    const error = errorNamed(name);
    const remoteAddr = { ...address(7), hostname: "::1" };
    assertEquals(await linesOf(error, { remoteAddr }), [`[::1]:7 ${error}`]);
  });
}

Deno.test("showError: a client over a Unix socket is shown by the server's path", async () => {
  const localAddr = { transport: "unix", path: "/run/s" };
  const unix = { localAddr, remoteAddr: { transport: "unix", path: null } };
  assertEquals(await linesOf("an error", unix), ["/run/s an error"]);
});

const MISTAKES = [
  Object.assign(new TypeError("my \x1b"), { code: 7 }),
  new DOMException("my \x1b", "InvalidCharacterError"), // of `atob`
  Object.assign(new Deno.errors.NotFound("my \x1b"), { code: "ENOENT" }),
];
for (const error of MISTAKES) {
  Deno.test(`showError: all else comes with its stack (${error.name})`, async () => {
    const [line, next] = await linesOf(error);
    assert(line?.startsWith(`127.0.0.1:7 ${error.name}: my \\u001b`), line);
    assert(/^ +at /.test(next!), next);
  });
}

for (const by of ["end", "the signal"]) {
  Deno.test(`showError: it is onError's default; a given reason is one line (${by})`, async () => {
    using stderr = capture("stderr");
    const { signal, abort } = controlled();
    const handler = (client: Peer) =>
      by === "end" ? client.end(ENOUGH) : abort(ENOUGH);
    const options = { signal, handler, onError: undefined };
    await using running = start(options, [fake()]);
    await running.accepted.next();
    await running.shutdown();
    assertEquals(stderr.all, ["127.0.0.1:7 Error: enough"]);
  });
}

const FORGED = "bad request: x\n127.0.0.1:5 Error: y\r\n127.0.0.1:6 Error: z";
for (const error of [new Error(FORGED), new InvalidData(FORGED), FORGED]) {
  Deno.test(`showError: a message can't forge a line (${error.constructor.name})`, async () => {
    const [first, ...others] = await linesOf(error);
    assert(first!.startsWith("127.0.0.1:7 "), first);
    assert(others.every((line) => /^ +\S[^\r]*$/.test(line)));
  });
}

const throwing = (object: object, key: PropertyKey) =>
  Object.defineProperty(object, key, { get: () => fail(new Error("odd")) });
const revoked = Proxy.revocable({}, {});
revoked.revoke();
/** Errors at which a look fails. */
const ODD: Record<string, unknown> = {
  "inspection": throwing({}, Symbol.for("Deno.customInspect")),
  "message": throwing(errorNamed("BrokenPipe"), "message"),
  "name": throwing(new Error(), "name"),
  "code": throwing(new Error(), "code"),
  "code as a text": Object.assign(new Error(), { code: Object.create(null) }),
  "proxy": revoked.proxy,
};
for (const [name, error] of Object.entries(ODD)) {
  Deno.test(`showError: an error whose ${name} can't be looked at ends nothing`, async () => {
    using stderr = capture("stderr");
    const handler = (client: Peer) => {
      if (running.accepted.all.length === 2) client.end(ENOUGH);
      fail(error);
    };
    const options = { maxClients: 1, handler, onError: undefined };
    await using running = start(options, [fake(reads()), fake(reads())]);
    await until("both are served", () => running.accepted.all.length === 2);
    await running.shutdown();
    await turn();
    assert(stderr.all.length >= 2, "something is said of each");
  });
}

Deno.test("showError: where nobody reads, 1,000 errors wait, and further ones are lost", async () => {
  using stderr = capture("stderr");
  const reader = Promise.withResolvers<void>();
  stderr.gate = reader.promise;
  const client = new Peer(fake());
  for (let i = 0; i < 1_500; i++) showError("an error", client);
  reader.resolve();
  await turn();
  const { length } = stderr.all;
  assert(length > 900 && length <= 1_000, `${length} waited`);
  showError("a later one", client);
  await turn();
  assertEquals(stderr.all.at(-1), "127.0.0.1:7 a later one");
});

// server.ts, the command

const LOST = { ...reads(), ...failing("write", "EPIPE") };
/** A client, what is printed of it, and the exit code with `--once`. */
const OUTCOMES: [peer: Fake, outcome: string, code: number][] = [
  [fake(reads("1\x1b\n\r\n")), "replied: 1\\u001b\\n", 0],
  [fake(reads()), "left without a reply", 0],
  [fake(reads(LARGEST, "x")), "sent too long a reply", 1],
  [fake(), "timed out", 1],
  [fake({}, "hi\x1b\n"), "timed out; so far: hi\\u001b", 1],
  [fake(failing("read", "ConnectionReset")), "reset the connection", 1],
  [fake(LOST), "reset the connection", 1],
  [fake(failing("read", "mine")), "failed", 1],
];
for (const [peer, outcome, code] of OUTCOMES) {
  Deno.test(`server.ts: with --once it serves one client, of which it says: ${outcome}`, async () => {
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

net.test("server.ts: a stop signal lets the clients finish, and accepts no more", async () => {
  await using command = await startServer("--max-clients=1");
  using peer = await dial(command);
  using _other = await dial(command); // which finds no room
  assertEquals(await rest(peer), GREETING);
  const address = `127.0.0.1:${peer.localAddr.port}`;
  await command.line(`${address} connected`);

  command.signal("SIGINT");
  await command.line("Stopping: 1 client to finish");
  command.signal("SIGINT"); // the same: under `deno task`, it comes twice
  await until("a signal is the system's", () => command.names().length === 0);
  await assertRejects(() => dial(command), Error);
  await end(peer, REPLY);

  await command.line(`${address} replied: ${REPLY}`);
  await command.line("Served 1 client");
  await command.ends(0);
});

Deno.test("server.ts: a stop signal is the system's while Deno may ask for the permission", async () => {
  const heard: string[][] = [];
  const refuses = () => fail(heard.push(command.names()) && MINE);
  await using command = run("server.ts", refuses);
  assertEquals([await command.code(), heard], [1, [[]]]);
});

for (const [code, line] of ["server.ts", "server.ts --once"].entries()) {
  Deno.test(`server.ts: a stop signal before a client comes gives ${code} (${line})`, async () => {
    await using command = run(line, []);
    await command.line("Listening on 127.0.0.1:9");
    command.signal("SIGTERM");
    await command.ends(code);
    assertEquals(command.names(), []);
    await command.line("Stopping: 0 clients to finish");
    await command.line("Served 0 clients");
  });
}

for (let steps = 0; steps < 8; steps++) {
  Deno.test(`server.ts: with --once, a late signal changes nothing (${steps} microtasks)`, async () => {
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

const NOBODY_READS = "error: cannot print: nobody reads the lines";

Deno.test("server.ts: where nobody reads, it serves on, and 16 MiB of lines wait", async () => {
  const text = "x".repeat(65_000);
  const replies = Array.from({ length: 270 }, (_, i) => `${i} ${text}`);
  const peers = replies.map((reply) => fake(reads(reply)));
  await using command = await stalled("server.ts", ...peers);
  await until("all are served", () => peers.at(-1)!.events.includes("close"));
  command.read();
  command.signal("SIGINT");
  await command.ends(0, [NOBODY_READS]); // once
  const lines = command.out.all.filter((line) => line.endsWith(text));
  assert(lines.length > 255 && lines.length < 259, `${lines.length} lines`);
  const kept = replies.slice(0, lines.length);
  assertEquals(lines, kept.map((reply) => `127.0.0.1:7 replied: ${reply}`));
});

for (const line of ["server.ts --once", "server.ts"]) {
  for (const said of [[NOBODY_READS], []]) {
    const where = said[0] ? "its lines" : "its lines, nor its errors";
    Deno.test(`server.ts: where nobody reads ${where}, it ends within 8 s (${line})`, async () => {
      using timer = timers((delay) => delay >= 1_000 ? 0 : delay);
      await using command = await stalled(line);
      if (!said[0]) command.err.gate = command.out.gate;
      if (line === "server.ts") command.signal("SIGINT");
      await command.ends(line === "server.ts" ? 0 : 1, said);
      const waits = timer.delays.filter((delay) => delay >= 1_000);
      assert(waits.reduce((sum, one) => sum + one) < 8_000, `${waits}`);
      command.read();
    });
  }
}

Deno.test("server.ts: at its end it waits for a slow reader", async () => {
  using timer = timers();
  await using command = await stalled("server.ts --once");
  await until("it waits", () => timer.delays.includes(5_000));
  command.signal("SIGINT"); // changes nothing any more
  command.read();
  await command.ends(0);
  assertEquals(command.out.all.length, 4);
});

Deno.test("server.ts: lines that can't be written are said once, and it goes on", async () => {
  const peer = fake(reads("hi"));
  await using command = run("server.ts", [peer]);
  const reader = Promise.withResolvers<void>();
  command.err.gate = reader.promise; // It waits for this, too.
  command.out.room = 0;
  await until("it is served", () => peer.events.includes("close"));
  await turn();
  command.out.room = Infinity;
  command.signal("SIGINT");
  assertEquals(await isSettled(command.code()), false);
  reader.resolve();
  await command.ends(0, ["error: cannot print: closed"]);
  assertEquals(command.out.all.at(-1), "Served 1 client");
});
// exchange

net.test("exchange: it reads the greeting to its end, replies, and closes", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const events: unknown[] = [];
  const slowly = (...event: unknown[]) =>
    turn().then(() => events.push(...event));
  const greeting = exchange({
    port,
    reply: "one\n",
    onConnect: (server) => slowly(server.port),
    onGreeting: slowly,
  });
  using peer = await accept(listener);
  await send(peer, "\ufeffgood ");
  await end(peer, "day");
  assertEquals(await rest(peer), "one\n");
  peer.close();
  assertEquals(await inTime("the greeting", greeting), "\ufeffgood day");
  assertEquals(events, [port, "\ufeffgood day", true]);
});

net.test("exchange: by default with 127.0.0.1:8888, and with its reply", async () => {
  for (const options of [undefined, {}, UNSET]) {
    using listener = listen();
    const { connect } = Deno;
    const asked: unknown[] = [];
    using _ = replace(Deno, "connect", (options: Deno.ConnectOptions) => {
      asked.push(options.hostname, options.port);
      return connect({ ...options, port: listener.addr.port });
    });
    const greeting = inTime("the greeting", exchange(options));
    using peer = await accept(listener);
    await end(peer, TEXT);
    assertEquals(await rest(peer), REPLY);
    peer.close();
    assertEquals(await greeting, TEXT);
    assertEquals(asked, ["127.0.0.1", 8888]);
  }
});

net.test("exchange: a greeting counts after two seconds of silence, and no sooner", async () => {
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

net.test("exchange: what comes until the very last look of its time, or of the silence, is read", async () => {
  for (const timeout of [2_000, 60_000]) {
    using clock = fakeClock();
    using peers = await exchanging({ timeout });
    await send(peers.there, "good ");
    await peers.nextRead();
    await clock.passed(2_000);
    void end(peers.there, "day"); // It arrives at once,
    clock.pass(50); // but is read after this.
    await until("it replies", () => peers.greetings.length > 0);
    assertEquals(peers.greetings[0], "good day");
  }
});

net.test("exchange: a standstill is not silence", async () => {
  using peers = await exchanging();
  await send(peers.there, "good ");
  await peers.nextRead();
  for (const over = Date.now() + 2_200; Date.now() < over;);
  await turn();
  await turn();
  await end(peers.there, "day");
  await until("it replies", () => peers.greetings.length > 0);
  assertEquals(peers.greetings, ["good day", true]);
});

for (const isSilent of [false, true]) {
  const what = isSilent ? "it waits a second at most" : "it drops what comes";
  net.test(`exchange: its reply is not lost to a close: to the server's end ${what}`, async () => {
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

for (const method of ["closeWrite", "read"]) {
  Deno.test(`exchange: an error once the reply is sent is no failure (${method})`, async () => {
    const peer = fake(reads("hello"));
    const { write } = peer;
    peer.write = (bytes) => {
      Object.assign(peer, failing(method, "NotConnected"));
      return write(bytes);
    };
    assertEquals(await exchangeWith(peer), "hello");
    assertEquals(peer.events.at(-1), "close");
  });
}

/** What a server sends before its end, and an error's type. */
const SIZES = [
  [LARGEST, undefined],
  ["", UnexpectedEof],
  [`${LARGEST}x`, InvalidData],
] as const;
for (const [text, type] of SIZES) {
  net.test(`exchange: a greeting has 1 to 65,536 bytes; any other is not replied to (${text.length})`, async () => {
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

for (const timeout of [undefined, 10_000]) {
  net.test(`exchange: the server has 10 s for all of it together (${timeout})`, async () => {
    using clock = fakeClock();
    using peers = await exchanging({ timeout });
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
}

for (const timeout of [100, Infinity]) {
  net.test(`exchange: the time of what it calls is not the server's; Infinity is no limit (${timeout})`, async () => {
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
  for (const text of ["", "hello"]) {
    const given = exchangeWith(fake({}, text), { timeout: 1 });
    assertEquals(await soFar(given), ["TimeoutError", text]);
  }
  const { read } = cutAfter("hel", errorNamed("ConnectionReset"));
  const given = exchangeWith(fake({ read }));
  assertEquals(await soFar(given), ["ConnectionReset", "hel"]);
});

net.test("exchange: a server that does not take the reply is given up, too", async () => {
  using clock = fakeClock();
  using peers = await exchanging({ reply: MORE_THAN_BUFFERS });
  await end(peers.there, "hello");
  await until("it replies", () => peers.greetings.length > 0);
  await turn();
  await clock.passed(10_050);
  const outcome = Promise.reject(await peers.outcome);
  assertEquals(await soFar(outcome), ["TimeoutError", undefined]);
});

Deno.test("exchange: time is up where it does not connect, or in the very turn", async () => {
  const peer = fake(reads("hello"));
  const signals: AbortSignal[] = [];
  const late = ({ signal }: Deno.ConnectOptions) =>
    once(signals[0] = signal!, "abort").then(() => peer);
  for (const connect of [hang, late]) {
    using _ = replace(Deno, "connect", connect);
    const told = await errorOf(exchange({ timeout: 1 }));
    assertEquals(`${told}`, "TimeoutError: time is up");
  }
  await turn();
  assertEquals([peer.events, signals[0]!.aborted], [["close"], true]);
});

for (const name of ["onConnect", "onGreeting"]) {
  Deno.test(`exchange: where ${name} fails, so does it, and closes`, async () => {
    const peer = fake(reads("hello"));
    const given = exchangeWith(peer, { [name]: () => fail(MINE) });
    assert(await errorOf(given) === MINE);
    assertEquals(peer.events, ["close"]);
  });
}

Deno.test("exchange: a connection to itself is a refusal, and closed", async () => {
  const itself = fake({ remoteAddr: address(8888) });
  const given = exchangeWith(itself, { onConnect: () => fail(MINE) });
  await assertRejects(() => given, ConnectionRefused, "itself");
  assertEquals(itself.events, ["close"]);
});

// client.ts, the command

net.test("client.ts: it waits for a server, and prints each line as it happens", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const line = `client.ts -p ${port} --wait=9 --reply one\x1b\ntwo\n`;
  await using command = run(line, [refuse, refuse, Deno.connect]);
  using peer = await accept(listener);
  await command.line(`Connected to 127.0.0.1:${port}`);
  await end(peer, "good\tday\r\n");
  await command.line("Greeting: good\\tday");
  assertEquals(await rest(peer), "one\x1b\ntwo\n");
  peer.close();
  await command.line("Replied: one\\u001b\\ntwo");
  await command.ends(0);
});

for (const flag of ["", " -q"]) {
  Deno.test(`client.ts: it replies to who greets and waits, and says so (${flag})`, async () => {
    using clock = fakeClock();
    const peer = fake({}, "hello");
    await using command = run(`client.ts${flag}`, [peer]);
    await turn();
    await clock.passed(2_050); // of silence, and then a second for its end
    await clock.passed(1_050);
    assert(peer.events.includes("write 15"), `${peer.events}`);
    if (!flag) await command.line("Connected to 127.0.0.1:7");
    await command.line(flag ? "hello" : "Greeting: hello");
    await command.ends(0, [
      "note: the server did not end its greeting (it neither closed nor " +
      "half-closed); after two seconds of silence it counts as whole",
    ]);
  });
}

const FINAL = [Deno.errors.NotCapable, TypeError, RangeError, URIError];
for (const type of [ConnectionRefused, BrokenPipe, Error, ...FINAL]) {
  Deno.test(`client.ts: where it can't connect, it tries again for --wait (${type.name})`, async () => {
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

Deno.test("client.ts: each try has its whole time; once it was connected there is no other", async () => {
  const times: number[] = [];
  const late = (options: Deno.ConnectOptions) => {
    const began = performance.now();
    return hang(options).finally(() => times.push(performance.now() - began));
  };
  const tries = [refuse, late, late, fake(reads()), fake(reads("no"))];
  const line = "client.ts --timeout=0.1 --wait=60";
  const { code, err } = await outcomeOf(line, tries);
  const said = ["error: 127.0.0.1:8888 closed without a greeting"];
  assertEquals([code, err], [1, said]);
  assert(times.length === 2 && Math.min(...times) >= 99, `${times}`);
});

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
  [fake({}, "\n"), NO_END],
  [fake(DEAF), SLOW],
  [fake(reads()), "S closed without a greeting"],
  [fake(reads(LARGEST, "x")), "S sent a greeting longer than 65536 bytes"],
  [fake(failing("read", "ECONNRESET")), "S reset the connection"],
  [fake(failing("read", "EHOSTUNREACH")), "S reset the connection"],
];
for (const [peer, said] of COMPLAINTS) {
  Deno.test(`client.ts: what is wrong is one line, after its own: ${said}`, async () => {
    const line = "client.ts --timeout=0.05";
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
  ...{ "127.0.0.1": ADDRESSES, "127.1.2.3": ADDRESSES, "::1": ADDRESSES },
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

const FIREWALL =
  "; it may be a firewall, or on macOS the permission for the local network";
for (const [code, hint] of [["EHOSTUNREACH", FIREWALL], ["ENETUNREACH", ""]]) {
  Deno.test(`client.ts: where there is no route, it may be a firewall or a permission (${code})`, async () => {
    const { err } = await outcomeOf("client.ts", () => fail(errorNamed(code!)));
    assertEquals(err, [`error: cannot reach 127.0.0.1:8888: ${code}${hint}`]);
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

net.test("both: they talk to each other, with --quiet in fewer lines", async () => {
  await using one = await startServer("--once --greeting=hello --quiet");
  const line = `client.ts --port=${one.addr.port} --reply=hi -q`;
  await using two = run(line); // Its stdout is that of both now.
  await two.ends(0);
  await one.ends(0);
  assertEquals(two.out.all.toSorted(), ["Served 1 client", "hello"]);
});

/** Commands, and after how many lines they can't print. */
const PRINTING: [line: string, after: number][] = [
  ["server.ts --once", 0],
  ["server.ts -h", 0],
  ["client.ts -h", 0],
  ...[0, 1, 2].map((after): [string, number] => ["client.ts", after]),
];
for (const [line, after] of PRINTING) {
  Deno.test(`both: where a line can't be printed, another says so, and 1 (${line}, ${after})`, async () => {
    const peer = fake(reads("hi"));
    await using command = run(line, [peer]);
    command.out.room = after;
    await command.ends(1, ["error: cannot print: closed"]);
    assert(line.endsWith("-h") || peer.events.at(-1) === "close");
  });
}

const A = "[::1]:65535";
const REFUSALS: [script: string, name: string, line: string][] = [
  ["server.ts", "AddrInUse", `${A} is in use; choose another port with --port`],
  ["server.ts", "PermissionDenied", `on ${A}; choose a`],
  ["server.ts", "AddrNotAvailable", `${A} is not an address of this machine;`],
  ["server.ts", "NotCapable", `listen on ${A}; run with --allow-net=${A}`],
  ["server.ts", "TimedOut", `cannot listen on ${A}: no`],
  ["client.ts", "ConnectionRefused", `nothing listens on ${A}; start the`],
  ["client.ts", "NotCapable", `connect to ${A}; run with --allow-net=${A}`],
  ["client.ts", "TimedOut", `cannot reach ${A}: no`],
];
for (const [script, name, part] of REFUSALS) {
  Deno.test(`both: where the system refuses, a line says what to do (${script}, ${name})`, async () => {
    const refuses = ({ hostname, port }: Deno.NetAddr) => {
      assertEquals([hostname, port], ["::1", 65_535]);
      return fail(errorNamed(name));
    };
    // Of a repeated flag the last one counts.
    const line = `${script} --host=[::1] --port 1 -p 065535`;
    const { code, out, err } = await outcomeOf(line, refuses);
    assertEquals([code, out, err.length], [1, [], 1]);
    assert(err[0]!.startsWith("error: ") && err[0]!.includes(part), err[0]);
  });
}

/** Command lines, and what is said of them. */
const WRONG: Record<string, string> = {
  "server.ts --nosuch": 'unexpected "--nosuch"',
  "server.ts -- behind": 'unexpected "behind"',
  "client.ts --once=1": 'unexpected "--once',
  "client.ts --no-host=x": 'unexpected "--no-host=x"',
  "client.ts --no-quiet": 'unexpected "--no-quiet"',
  "client.ts --reply --quiet": "--reply needs a value: --reply=VALUE",
  "server.ts --host=": "--host needs a value: --host=VALUE",
  "server.ts --host ": "--host needs a value: --host=VALUE",
  "client.ts --quiet=no": "--quiet takes no value",
  "client.ts --quiet false": "--quiet takes no value",
  "client.ts --q=8": "--quiet takes no value",
  "server.ts --h=8": "--help takes no value",
  "server.ts --once=1": "--once takes no value",
  "client.ts -qh=x": "takes no value",
  "client.ts -qp8": "--quiet takes no value",
  "server.ts -q0": "--quiet takes no value",
  "server.ts --help=1": "--help takes no value",
  "server.ts --port 65536": 'a whole number from 0 to 65535, not "65536"',
  "server.ts --port 80.5": 'a whole number from 0 to 65535, not "80.5"',
  "server.ts --timeout 0": 'must be a number from 0.001 to 2147483, not "0"',
  "server.ts --timeout 1e3": 'a number from 0.001 to 2147483, not "1e3"',
  "client.ts --timeout 5.": 'a number from 0.001 to 2147483, not "5."',
  "client.ts --timeout .": 'a number from 0.001 to 2147483, not "."',
  "server.ts --max-clients 0": "clients must be a whole number from 1 to 900",
  "client.ts --port 0": 'port must be a whole number from 1 to 65535, not "0"',
  "client.ts --timeout 0": 'must be a number from 0.001 to 2147483, not "0"',
  "client.ts --wait=-1": 'wait must be a number from 0 to 2147483, not "-1"',
};
for (const [line, part] of Object.entries(WRONG)) {
  Deno.test(`both: a wrong command line is one line that names it, and 2 (${line})`, async () => {
    const { code, out, err } = await outcomeOf(line, () => fail(MINE));
    assertEquals([code, out, err.length], [2, [], 1]);
    assert(/^error: .*; see --help$/.test(err[0]!), err[0]);
    assert(err[0]!.includes(part), err[0]);
  });
}

const SHARED = { host: "127.0.0.1", port: 8888, timeout: 10, quiet: "off" };
const OF_SERVER = { greeting: GREETING, "max-clients": 1024, once: "off" };
const OF_CLIENT = { reply: REPLY, wait: 0 };
const FLAGS = {
  "server.ts": { ...SHARED, ...OF_SERVER, help: "off" },
  "client.ts": { ...SHARED, ...OF_CLIENT, help: "off" },
};
for (const [script, flags] of Object.entries(FLAGS)) {
  Deno.test(`both: half a second is 0.5 or .5 (${script})`, async () => {
    for (const flag of ["--timeout .5", "--timeout=.5", "--timeout 0.5"]) {
      const { code, err } = await outcomeOf(
        `${script} ${flag}`,
        () => fail(MINE),
      );
      assertEquals([code, err.length], [1, 1]);
    }
  });

  Deno.test(`both: a line of a message can't pass for one of theirs (${script})`, async () => {
    const message = "no\nerror: x\r\n127.0.0.1:5 replied: \x1b[2J";
    const { code, err } = await outcomeOf(script, () => fail(Error(message)));
    const [first, ...others] = err;
    assertMatch(first!, /^error: cannot (reach|listen on) 127.0.0.1:8888: no$/);
    const shown = ["  error: x\\r", "  127.0.0.1:5 replied: \\u001b[2J"];
    assertEquals([code, others], [1, shown]);
  });

  Deno.test(`both: a command ends when its error is said, or can't be (${script})`, async () => {
    await using command = run(`${script} --nosuch`);
    const reader = Promise.withResolvers<void>();
    command.err.gate = reader.promise;
    command.err.room = 0;
    assertEquals(await isSettled(command.code()), false);
    reader.resolve();
    assertEquals(await command.code(), 2);
  });

  Deno.test(`both: the help has every flag, with its default (${script})`, async () => {
    for (const flag of ["--help", "-h", "-qh"]) {
      const { code, out, err } = await outcomeOf(`${script} ${flag}`);
      assertEquals([code, err], [0, []]);
      for (const [name, value] of Object.entries(flags)) {
        assertMatch(out.join("\n"), RegExp(`--${name}\\b.*\\(${value}\\)`));
      }
    }
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

// The fakes, beside the real thing

net.test("fakes: a close cuts what is pending, and later calls", async () => {
  using pair = await connected();
  using real = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  for (const listener of [real, listenerOf([])]) {
    const accepting = inTime("the accept", listener.accept());
    for (let i = 0; i < 2; i++) listener[Symbol.dispose]();
    await assertRejects(() => accepting, BadResource);
    const again = inTime("another accept", listener.accept());
    await assertRejects(() => again, BadResource);
  }
  for (const peer of [pair.there, fake()]) {
    peer.setNoDelay();
    assertEquals(await peer.write(new Uint8Array(0)), 0);
    const reading = inTime("the read", peer.read(new Uint8Array(1)));
    for (let i = 0; i < 2; i++) peer[Symbol.dispose]();
    await assertRejects(() => reading, Interrupted);
    await assertRejects(() => peer.write(encode("x")), BadResource);
    await assertRejects(() => peer.closeWrite(), BadResource);
    assertThrows(() => peer.setNoDelay(), BadResource);
    assertThrows(() => peer.close(), BadResource);
  }
});

net.test("fakes: a write takes a part; an aborted connect has the signal's reason", async () => {
  using pair = await connected();
  const part = await pair.there.write(encode(MORE_THAN_BUFFERS));
  assert(part > 0 && part < MORE_THAN_BUFFERS.length, `${part} bytes`);
  const signal = AbortSignal.abort("why");
  for (const connect of [Deno.connect, hang]) {
    assertEquals(await errorOf(connect({ port: 1, signal })), "why");
  }
});
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

/** A source that gives these, one a read as far as they fit, and the end once. */
function reads(...pieces: (string | Uint8Array)[]) {
  const left = pieces.map((one) => typeof one === "string" ? encode(one) : one)
    .filter(({ length }) => length > 0);
  let isEnded = false;
  const read = async (room: Uint8Array): Promise<number | null> => {
    if (isEnded) throw new Error("it read after the end");
    isEnded = left.length === 0;
    if (isEnded) return null;
    const taken = left[0]!.subarray(0, room.length);
    room.set(taken);
    left[0] = left[0]!.subarray(taken.length);
    if (left[0].length === 0) left.shift();
    return await taken.length;
  };
  return { read };
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

/** A source of so many bytes, so many a read, with the rooms that it was given. */
function bytesOf(count: number, most = Infinity) {
  const rooms: Uint8Array[] = [];
  const read = async (room: Uint8Array) => {
    if (count < 0) throw new Error("it read after the end");
    rooms.push(room);
    const taken = Math.min(count, most, room.length);
    count -= taken || 1;
    room.fill(0x78, 0, taken);
    return await taken || null;
  };
  return { rooms, read, left: () => count };
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

/** Connects to nothing, until it is aborted. */
async function hang({ signal }: Deno.ConnectOptions): Promise<never> {
  if (!signal!.aborted) await once(signal!, "abort");
  throw signal!.reason;
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

/** The name of the error, and what had come. */
async function soFar(exchanged: Promise<unknown>): Promise<unknown[]> {
  const error = await errorOf(exchanged) as Error & { soFar?: unknown };
  return [error.name, error.soFar];
}

/** The lines that are written, until the end of the block, and how that fails. */
function capture(name: "stdout" | "stderr") {
  const lines = new Events<string>();
  const decoder = new TextDecoder();
  let text = "";
  const sink = Object.assign(lines, {
    gate: undefined as Promise<void> | undefined, // what a write waits for
    room: Infinity, // how many writes do not fail
    async write(bytes: Uint8Array): Promise<number> {
      await sink.gate;
      if (sink.room-- <= 0) throw new BrokenPipe("closed");
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
  const stderr = () => `; on stderr: ${err.all.join("\n")}`;
  const code = () =>
    inTime("the command's end", end).catch((error) => {
      error.message += stderr();
      throw error;
    });
  const printed = async (expected: string) => {
    const line = await out.next(expected).catch((error) => error);
    assert(line === expected, `${line}, not ${expected}${stderr()}`);
  };
  const ends = async (expected: number, said: string[] = []) => {
    const actual = { code: await code(), err: err.all };
    assertEquals(actual, { code: expected, err: said });
  };
  const dispose = async () => {
    if (!await isSettled(end)) signal("SIGINT");
    await isSettled(end, 100);
    replaced.dispose();
  };
  const own = { out, err, signal, names, code, ends, line: printed };
  return { ...own, [Symbol.asyncDispose]: dispose };
}

/** What comes of a command that ends by itself. */
async function outcomeOf(...all: Parameters<typeof run>) {
  await using command = run(...all);
  const code = await command.code();
  return { code, out: command.out.all, err: command.err.all };
}

/** The server's command on a free port, once it listens. */
async function startServer(flags: string) {
  await using ends = new AsyncDisposableStack(); // where it does not listen
  const command = ends.use(run(`server.ts --port 0 ${flags}`));
  const line = await command.out.next("it listens");
  const port = Number(/^Listening on 127\.0\.0\.1:(\d+)$/.exec(line)![1]);
  ends.move();
  return { ...command, addr: address(port) };
}

/** A command that listens, and whose lines nobody reads until `read` is called. */
async function stalled(line: string, ...peers: Deno.TcpConn[]) {
  await using ends = new AsyncDisposableStack(); // where it does not listen
  const late = Promise.withResolvers<Deno.TcpConn>();
  const reader = Promise.withResolvers<void>();
  const command = ends.use(run(line, [late.promise, ...peers]));
  await command.line("Listening on 127.0.0.1:9");
  command.out.gate = reader.promise;
  late.resolve(fake(reads("hi")));
  await turn();
  ends.move();
  return { ...command, read: reader.resolve };
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
