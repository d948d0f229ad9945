/**
 * What `server.ts` and `client.ts` promise: one rule a test, in the order in which
 * they stand in `server.ts`, then those of `client.ts`, then what both have.
 *
 * An `it` has real sockets, on the loopback, where these can show its rule. A
 * `test` has none: its fakes come in as a listener, or as a connection that is
 * handed over, and the tests "fakes" compare them with the real thing. A test waits
 * two seconds at most, so that a broken rule fails its own tests and no others.
 * Helpers come last. To run: `deno test --allow-net`.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertRejects, assertThrows } from "@std/assert";
import { getEventListeners, once } from "node:events";
import { connect as connectNode } from "node:net";
import { setTimeout as nodeTimeout } from "node:timers/promises";
import * as client from "./client.ts";
import { exchange, type ExchangeOptions } from "./client.ts";
import * as server from "./server.ts";
import { greet, onStopSignal, printable, Reader, sendAll } from "./server.ts";
import { serve, showError, withSession } from "./server.ts";
import type { ServeOptions, Session, SessionOptions } from "./server.ts";

const { BadResource, BrokenPipe, Interrupted } = Deno.errors;
const { ConnectionRefused, InvalidData, UnexpectedEof } = Deno.errors;

const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const TEXT = "你好,客戶端 👋🏽";
const LARGEST = "x".repeat(65_536); // of a message
const MORE_THAN_BUFFERS = "x".repeat(20_000_000); // of both ends
const STOP_SIGNALS = ["SIGINT", "SIGTERM"];
const ONE_IS_LOST = "ConnectionReset ConnectionAborted NotConnected " +
  "ECONNRESET ECONNABORTED ENOTCONN";
const MINE = new TypeError("mine");
const ENOUGH = new Error("enough");
const { state } = await Deno.permissions.query({ name: "net" });
const setRealTimeout = setTimeout;

// greet

it("greet: the greeting is whole, and ends its half, not the client's", async () => {
  using pair = await connected();
  const replied = inTime("the reply", greet(pair.there, MORE_THAN_BUFFERS));
  assert(await rest(pair.here) === MORE_THAN_BUFFERS);
  await send(pair.here, "still ");
  await end(pair.here, "here");
  assertEquals(await replied, "still here");
});

test("greet: it sends, half-closes, reads 65,536 bytes at most, and does not close", async () => {
  const [peer, other] = [fake(reads(LARGEST)), fake(reads(LARGEST, "x"))];
  assertEquals(await greet(peer, encode(GREETING)), LARGEST);
  const tooLong = greet(other, GREETING);
  await assertRejects(() => tooLong, InvalidData, "65537 bytes, at most 65536");
  const events = ["write 32", "closeWrite"];
  assertEquals([peer.events, other.events], [events, events]);
});

for (const reply of ["a reply", ""]) {
  it(`greet: a client that left before is heard (it left "${reply}")`, async () => {
    using pair = await connected();
    await send(pair.here, reply);
    pair.here.close();
    assertEquals(await inTime("it", greet(pair.there, GREETING)), reply);
  });
}

for (const method of ["write", "closeWrite"]) {
  for (const name of ["BrokenPipe", "NotConnected", "TimedOut", "EPIPE"]) {
    test(`greet: it reads on only from who is gone (${name} of ${method})`, async () => {
      const error = errorNamed(name);
      const fails = { [method]: () => Promise.reject(error) };
      const replied = greet(fake({ ...reads("a reply"), ...fails }), GREETING);
      const outcome = await replied.catch((error) => error);
      const isGone = name === "BrokenPipe" || name === "NotConnected";
      assert(outcome === (isGone ? "a reply" : error));
    });
  }
}

// serve: where it listens

test("serve: it listens on 127.0.0.1:8888, or where it is told to", async () => {
  const asked: Deno.TcpListenOptions[] = [];
  const listen = (options: Deno.TcpListenOptions) =>
    asked.push(options) && listenerOf([]);
  using _ = replace(Deno, "listen", listen);
  await inTime("the end", serve({ handler: nothing }).shutdown());
  const told = { hostname: "::1", port: 0, handler: nothing };
  await inTime("the end", serve(told).shutdown());
  const where = asked.map(({ hostname, port }) => `${hostname} ${port}`);
  assertEquals(where, ["127.0.0.1 8888", "::1 0"]);
  assert(asked[0]!.tcpBacklog! > 511, "Deno's default overflows in a burst");
  Deno.listen = () => fail(MINE);
  assertThrows(() => serve(told), TypeError, "mine");
});

test("serve: in place of that, it accepts on a listener, which it closes", async () => {
  using _ = replace(Deno, "listen", () => fail(new Error("it listened")));
  await using running = start({}, [fake()]);
  await running.accepted.next();
  await running.shutdown();
  assertEquals(running.addr, address(9));
  await assertRejects(() => running.listener.accept(), BadResource);
});

/** What `serve` and `withSession` refuse, with an error that names it. */
const REFUSED: Record<string, unknown>[] = [
  ...[undefined, "nothing"].map((handler) => ({ handler })),
  ...[0, -1, NaN, "5000"].map((timeout) => ({ timeout })),
  { signal: AbortSignal.abort(new RangeError("signal")) },
];
const COUNTS = [0, 1.5, NaN].map((maxClients) => ({ maxClients }));
for (const wrong of [...REFUSED, ...COUNTS]) {
  const [[name, value]] = Object.entries(wrong) as [[string, unknown]];
  const type = name === "handler" ? TypeError : RangeError;
  const options = { handler: nothing, ...wrong } as ServeOptions;
  test(`serve: a ${name} of ${value} is refused before it listens; a listener is closed`, async () => {
    using _ = replace(Deno, "listen", () => fail(new Error("it listened")));
    const listener = listenerOf([]);
    assertThrows(() => serve(options), type, name);
    assertThrows(() => serve({ ...options, listener }), type, name);
    const accepting = inTime("its close", listener.accept());
    await assertRejects(() => accepting, BadResource);
  });
  if (name === "maxClients") continue;
  test(`withSession: a ${name} of ${value} is refused; the connection is closed`, async () => {
    const peer = fake();
    const { handler } = { handler: () => fail(new Error("called")), ...wrong };
    const given = withSession(peer, handler, wrong as object);
    await assertRejects(() => given, type, name);
    assertEquals(peer.events, ["close"]);
  });
}

test("serve, withSession: other connections and misspelt options are type errors", () => {
  // Never called: `deno check` says where one of these is no error.
  const types = (tls: Deno.TlsListener, connection: Deno.TlsConn) => {
    const overTls = (peer: Deno.TlsConn) => peer.handshake();
    const overTcp = (peer: Deno.TcpConn) => peer.setNoDelay();
    serve({ handler: overTcp });
    serve({ listener: tls, handler: overTls });
    serve({ listener: tls, handler: (peer) => greet(peer, GREETING) });
    // @ts-expect-error: it accepts others
    serve({ handler: overTls });
    // @ts-expect-error: it accepts others
    serve({ listener: tls, handler: overTcp });
    // @ts-expect-error: it is `timeout`
    serve({ handler: nothing, timeOut: 1 });
    // @ts-expect-error: it is another
    withSession(connection, overTcp);
    // @ts-expect-error: it is `timeout`
    withSession(connection, nothing, { timeOut: 1 });
    return withSession(connection, () => 1) satisfies Promise<number>;
  };
  assertEquals(types.length, 2);
});

// serve: accepting

test("serve: it serves 1,024 at once, for 10 s each, or as many as it is told", async () => {
  using clock = fakeClock();
  await using running = start({ handler: untilEnded }, fakes(1_500));
  await turn();
  clock.pass(10_000);
  await turn();
  assertEquals([running.clients, running.accepted.all.length], [1_024, 1_024]);
  clock.pass(50);
  await turn();
  assertEquals([running.clients, running.told().length], [476, 1_024]);
  await using other = start({ maxClients: Infinity }, fakes(1_500));
  await until("all are served", () => other.accepted.all.length === 1_500);
});

it("serve: a handler counts until it settles, also after its end; then the next is served", async () => {
  const go = Promise.withResolvers<void>();
  const handler = () => go.promise.then(() => fail("late"));
  await using running = start({ timeout: 20, maxClients: 2, handler });
  using one = await dial(running);
  using two = await dial(running);
  using _three = await dial(running);
  for (const peer of [one, two]) assertEquals(await rest(peer), ""); // time is up
  assertEquals([running.clients, running.accepted.all.length], [2, 2]);
  go.resolve();
  await until("the third is served", () => running.accepted.all.length === 3);
  assertEquals(running.errors.all[0], ["late", one.localAddr]);
});

test("serve: beside 100 peers that never shake hands, others are served", async () => {
  const hangs = { write: () => new Promise(nothing) };
  const peers = Array.from({ length: 100 }, () => fakeTls(hangs));
  const heard = new Events<string>();
  const handler = async (peer: Deno.Conn) =>
    heard.push(await new Reader(peer).readAll());
  await using _ = start({ handler }, [...peers, fakeTls(reads("hello"))]);
  assertEquals(await heard.next("what the last one says"), "hello");
});

test("serve: each 32nd client is written nothing to before it is served", async () => {
  const writable = Promise.withResolvers<number>();
  const events: string[] = [];
  const peers = fakes(65).map((peer, i) =>
    Object.assign(peer, {
      setNoDelay: () => events.push(`serves ${i + 1}`),
      write: ({ length }: Uint8Array) =>
        events.push(`${length} bytes to ${i + 1}`) && writable.promise,
    })
  );
  const all = peers.map((_, i) => `serves ${i + 1}`);
  await using _running = start({}, peers);

  await turn();
  const before = [...all.slice(0, 31), "0 bytes to 32"];
  assertEquals(events, before); // and until then, no other is accepted
  writable.reject(new BrokenPipe("gone")); // which is for the handler to meet
  await turn();

  const after = [...all.slice(31, 63), "0 bytes to 64", ...all.slice(63)];
  assertEquals(events, [...before, ...after]);
});

const OTHERS = "EMFILE ENFILE ENOBUFS ENOMEM TimedOut";
for (const name of `${ONE_IS_LOST} ${OTHERS}`.split(" ")) {
  test(`serve: accepting goes on after ${name}, at once or with a pause, which is said once a minute`, async () => {
    using clock = fakeClock();
    using timer = timers(() => 20);
    using stderr = capture("stderr");
    const error = errorNamed(name);
    const times: number[] = [];
    const fails = [0, 59_999, 1].map((milliseconds) => () => {
      times.push(Date.now());
      clock.pass(milliseconds);
      return fail(error);
    });
    await using running = start({}, [...fails, fake()]);
    await running.accepted.next();
    const isLost = ONE_IS_LOST.includes(name);
    assertEquals(timer.delays, isLost ? [] : [100, 100, 100]);
    assert(isLost || times[2]! - times[0]! >= 38, "it waits for the pauses");
    const what = "no client can be accepted for now, still trying";
    const said = `error: ${what}: ${error.message}`;
    assertEquals(stderr.all, isLost ? [] : [said, said]);
  });
}

it("serve: clients that reset before they are accepted harm nobody", async () => {
  await using running = start({ maxClients: 1, handler: readOne });
  using first = await dial(running);
  await running.accepted.next();
  for (let i = 0; i < 20; i++) {
    const socket = connectNode({ port: running.addr.port, host: "127.0.0.1" });
    await inTime("a connection", once(socket.on("error", nothing), "connect"));
    await inTime("its reset", once(socket.resetAndDestroy(), "close"));
  }
  using last = await dial(running);
  await end(first);
  await end(last);
  assertEquals(await rest(last), "");
  assertEquals(running.accepted.all.at(-1)!.remoteAddr, last.localAddr);
});

// serve: its clients

test("serve: each has its own time, and is ended, whoever left before", async () => {
  using clock = fakeClock();
  const { signal, abort } = controlled();
  const sessions: Session[] = [];
  const handler: Handler = (peer, session) =>
    sessions.push(session) && readOne(peer);
  const late = Promise.withResolvers<Deno.TcpConn>();
  const peers = [fake(), late.promise, ...fakes(5)];
  await using running = start({ timeout: 1_000, signal, handler }, peers);
  await turn();
  sessions.shift()!.end("leaves");
  await turn();
  assertEquals([running.clients, clock.looks.size], [0, 0]); // Nobody is there.
  late.resolve(fake());
  await turn();
  for (const i of [1, 5, 0]) sessions[i]!.end("leaves");
  await turn();
  assertEquals([running.clients, clock.looks.size], [3, 1]);

  for (const i of [2, 3]) {
    sessions[i]!.renew(100);
    clock.pass(150);
  }
  await turn();
  abort("enough");
  await inTime("the end", running.finished);

  const isUp = "TimeoutError: time is up";
  assertEquals(running.told().slice(4), [isUp, isUp, "enough"]);
});

it("serve, exchange: what comes while the program stands still is whole", async () => {
  using listener = listen();
  const replies = new Events<string>();
  const handler = async (peer: Deno.TcpConn) =>
    replies.push(await greet(peer, GREETING));
  await using running = start({ timeout: 200, handler });
  using ends = new DisposableStack();
  const { port } = listener.addr;
  const greeting = inTime("the greeting", exchange({ port, timeout: 200 }));
  void end(ends.use(await accept(listener)), LARGEST);
  for (let i = 0; i < 20; i++) {
    const peer = ends.use(await dial(running));
    assertEquals(await rest(peer), GREETING);
    void end(peer, LARGEST);
  }
  for (const over = Date.now() + 400; Date.now() < over;);
  for (let i = 0; i < 20; i++) assert(await replies.next() === LARGEST);
  assert(await greeting === LARGEST);
});

// serve: its end

it("serve: a shutdown lets its clients finish, accepts no more, leaves nothing", async () => {
  const { signal } = controlled();
  const replies = new Events<string>();
  const handler = async (peer: Deno.TcpConn) =>
    replies.push(await greet(peer, GREETING));
  await using running = start({ signal, handler });
  using one = await dial(running);
  assertEquals(await rest(one), GREETING);
  assertEquals([listenersOn(signal), running.clients], [1, 1]);

  const ended = running.shutdown();
  await assertRejects(() => dial(running), Error);
  assertEquals(await isSettled(running.finished), false);
  await end(one, REPLY);
  await Promise.all([ended, running.shutdown()]); // twice

  assertEquals([replies.all, listenersOn(signal)], [[REPLY], 0]);
  Deno.listen({ hostname: "127.0.0.1", port: running.addr.port }).close();
});

test("serve: a listener that its owner closes is a shutdown", async () => {
  using stderr = capture("stderr");
  const go = Promise.withResolvers<void>();
  await using running = start({ handler: () => go.promise }, [fake()]);
  await running.accepted.next();
  running.listener.close();
  assertEquals(await isSettled(running.finished), false);
  go.resolve();
  await inTime("the end", running.finished);
  assertEquals([running.told(), stderr.all], [[], []]);
});

/** The graces of a shutdown's calls, and whether they end who is left. */
const GRACES: Record<string, [graces: unknown[], isEnded: boolean]> = {
  "one": [[40], true],
  "one in a later call": [[undefined, 40], true],
  "one in a sooner call": [[40, undefined], true],
  "none": [[undefined], false],
  "one too long for a timer": [[2 ** 31], false],
  "Infinity": [[Infinity], false],
  "an event, where it is passed on": [[new Event("stop")], false],
};
for (const [name, [graces, isEnded]] of Object.entries(GRACES)) {
  test(`serve: a grace ends who is left after it, with a reason (${name})`, async () => {
    using timer = timers();
    const options = { timeout: Infinity, handler: untilEnded };
    await using running = start(options, fakes(2));
    await turn();
    const began = performance.now();
    for (const grace of graces) void running.shutdown(grace as number);
    if (isEnded) await inTime("the end", running.finished);
    await turn();
    assertEquals(timer.delays, isEnded ? [40] : []);
    assert(!isEnded || performance.now() - began >= 39);
    const reason = "AbortError: the server shuts down";
    assertEquals(running.told(), isEnded ? [reason, reason] : []);
  });
}

test("serve: `await using` waits, at the end of the block, for its clients", async () => {
  const [done, listener] = [new Events<boolean>(), listenerOf([fake()])];
  const handler = () => turn().then(() => done.push(true));
  const block = async () => {
    await using _server = serve({ listener, handler });
    await turn();
  };
  await inTime("the end of the block", block());
  assertEquals(done.all, [true]);
});

for (let steps = 0; steps < 10; steps++) {
  test(`serve: an abort ends all, also who just came (${steps} microtasks ago)`, async () => {
    const { signal, abort } = controlled();
    const late = Promise.withResolvers<Deno.TcpConn>();
    const [peer, further] = [fake(), fake()];
    const options = { signal, maxClients: 1, handler: readOne };
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

test("serve: an abort before the 32nd can be written to closes it", async () => {
  const [{ signal, abort }, peers] = [controlled(), fakes(40)];
  peers[31]!.write = () => turn().then(() => (abort("enough"), 0));
  await using running = start({ signal }, peers);
  await inTime("the end", running.finished);
  assertEquals(running.accepted.all.length, 31);
  assertEquals([peers[31]!.events, peers[32]!.events], [["close"], []]);
});

// serve: errors

test("serve: onError is called after the close, with the error and the client", async () => {
  const peer = fake();
  const told: unknown[] = [];
  const onError = (...all: unknown[]) => told.push(...peer.events, ...all);
  const handler = () => turn().then(() => fail(MINE));
  await using running = start({ onError, handler }, [peer]);
  await running.accepted.next();
  await running.shutdown();
  assertEquals(told.slice(0, 2), ["setNoDelay true", "close"]);
  assert(told[2] === MINE && told[3] === peer.remoteAddr && told.length === 4);
});

test("serve: nobody waits for an onError, and what it throws is shown with its stack", async () => {
  using stderr = capture("stderr");
  const answers: (() => unknown)[] = [
    () => new Promise(nothing),
    () => fail(new Error("of onError \x1b")),
    () => Promise.reject(new Error("of onError \x1b")),
    () => running.shutdown(),
  ];
  const onError = () => answers.shift()!();
  const options = { maxClients: 1, handler: () => fail(MINE), onError };
  await using running = start(options, fakes(4));
  await inTime("the end", running.finished);
  await turn();
  const isShown = (line: string) => line === "Error: of onError \\u001b";
  assertEquals(stderr.all.filter(isShown).length, 2);
  assert(stderr.all.some((line) => line.startsWith("    at ")));
});

// withSession

it("withSession: it resolves to what the handler gave, and closes", async () => {
  using pair = await connected();
  const handler = (peer: Deno.TcpConn) => new Reader(peer).readLine();
  const given = inTime("the handler", withSession(pair.there, handler));
  await send(pair.here, "hi\n");
  assertEquals([await given, await rest(pair.here)], ["hi", ""]);
  assertThrows(() => pair.there.close(), BadResource);
});

test("withSession: by default it has 10 s; it leaves no timer and no listener", async () => {
  using clock = fakeClock();
  const [{ signal }, peer] = [controlled(), fake()];
  const told = errorOf(withSession(peer, readOne, { signal }));
  assertEquals([clock.looks.size, listenersOn(signal)], [1, 1]);
  clock.pass(10_000);
  assertEquals(peer.events, ["setNoDelay true"]);
  clock.pass(50);
  assertEquals(nameOf(await told), "TimeoutError");
  assertEquals([clock.looks.size, listenersOn(signal)], [0, 0]);
});

// The session, in serve and in withSession

onBothSides("noDelay is set where there is one, but for false", async (run) => {
  for (const options of [{}, { noDelay: true }, { noDelay: false }]) {
    const peer = fake();
    assertEquals(await run(nothing, options, peer), "no error");
    const set = options.noDelay === false ? [] : ["setNoDelay true"];
    assertEquals(peer.events, [...set, "close"]);
  }
  assertEquals(await run(nothing, {}, fakeTls()), "no error");
});

/** With a time of 110 ms: what is called after 100 ms, and when it ends then. */
const TIMES: Record<string, [act: (one: Session) => unknown, end: number]> = {
  "no renew": [nothing, 200],
  "a renew": [(session) => session.renew(), 300],
  "a longer one": [(session) => session.renew(210), 400],
  "a shorter one": [(session) => session.renew(1), 200],
  "one without an end": [(session) => session.renew(Infinity), 1_000],
  "one back to the option": [
    (session) => [Infinity, undefined].forEach((time) => session.renew(time)),
    300,
  ],
  "wrong ones, which change nothing": [(session) => {
    for (const wrong of [0, -1, NaN, "9" as never]) {
      assertThrows(() => session.renew(wrong), RangeError, "timeout");
    }
  }, 200],
};
for (const [name, [act, end]] of Object.entries(TIMES)) {
  onBothSides(`50 to 100 ms after its time it ends (${name})`, async (run) => {
    using clock = fakeClock();
    const [peer, sessions] = [fake(), [] as Session[]];
    const handler: Handler = (peer, one) => sessions.push(one) && readOne(peer);
    const told = run(handler, { timeout: 110 }, peer);
    await turn();
    let now = 0;
    while (now < 1_000 && !peer.events.includes("close")) {
      clock.pass(50);
      if ((now += 50) === 100) act(sessions[0]!);
    }
    sessions[0]!.end("the end of the test");
    assertEquals(now, end);
    assertEquals(nameOf(await told) === "TimeoutError", end < 1_000);
  });
}

onBothSides("a standstill leaves 50 ms to read what has come", async (run) => {
  using clock = fakeClock();
  const peer = fake();
  const told = run(readOne, { timeout: 110 }, peer);
  await turn();
  clock.pass(50);
  clock.pass(60_000, 60_000);
  assertEquals(peer.events, ["setNoDelay true"]);
  clock.pass(50);
  assertEquals(`${await told}`, "TimeoutError: time is up");
});

const ended = (act: Handler): Handler => (peer, session) => {
  session.end(ENOUGH);
  session.end(MINE); // for nothing
  return act(peer, session);
};

/** What a handler does, and what is told of it. */
const TOLD: Record<string, [act: Handler, told: unknown]> = {
  "it closes by itself": [(peer) => peer.close(), "no error"],
  "it ends, and reads": [ended(readOne), ENOUGH],
  "it ends, and returns": [ended(nothing), ENOUGH],
  "it ends, and writes": [ended((peer) => peer.write(encode("x"))), ENOUGH],
  "it ends, and throws": [ended(() => fail(MINE)), MINE],
  "it ends without an error": [(_, session) => session.end(null), null],
  "it ends what waits with node:timers/promises": [(_, session) => {
    queueMicrotask(() => session.end(ENOUGH));
    return nodeTimeout(60_000, null, { signal: session.signal });
  }, ENOUGH],
};
for (const name of "ConnectionReset BadResource Interrupted".split(" ")) {
  const error = errorNamed(name);
  TOLD[`it throws a ${name}`] = [() => fail(error), error];
}
const aborted = new DOMException("mine", "AbortError");
TOLD["it throws an AbortError of its own"] = [() => fail(aborted), aborted];
for (const [name, [act, expected]] of Object.entries(TOLD)) {
  onBothSides(`what is told, where ${name}`, async (run) => {
    assert(await run(act) === expected);
  });
}

for (const when of ["before", "after"]) {
  onBothSides(`signal, read ${when} an abort, has its reason`, async (run) => {
    const { signal: outer, abort } = controlled();
    const told = await run((peer, session) => {
      const early = when === "before" ? session.signal : undefined;
      assert(!early?.aborted);
      abort(ENOUGH);
      const { signal } = session;
      assert(signal.reason === ENOUGH && signal === (early ?? signal));
      return readOne(peer);
    }, { signal: outer });
    assert(told === ENOUGH);
  });
}

onBothSides("after a good end, nothing ends it", async (run) => {
  const { signal, abort } = controlled();
  const sessions: Session[] = [];
  const told = await run((_, session) => sessions.push(session), { signal });
  sessions[0]!.renew();
  sessions[0]!.end(ENOUGH);
  abort(ENOUGH);
  assertEquals([told, sessions[0]!.signal.aborted], ["no error", false]);
});

it("session: its end cuts what is read and written", async () => {
  using pair = await connected();
  const began = performance.now();
  const outcomes: string[] = [];
  const handler = async (peer: Deno.TcpConn) => {
    const both = [readOne(peer), sendAll(peer, MORE_THAN_BUFFERS)];
    const settled = await Promise.allSettled(both);
    outcomes.push(...settled.map(({ status }) => status));
    await sendAll(peer, "more");
  };
  const told = errorOf(withSession(pair.there, handler, { timeout: 20 }));
  assertEquals(nameOf(await told), "TimeoutError");
  assert(performance.now() - began >= 69, "20 ms, and 50 more");
  assertEquals(outcomes, ["rejected", "rejected"]);
});

it("session: small writes in a row go at once, on both sides", async () => {
  const talk = async (peer: Deno.TcpConn, isFirst: boolean) => {
    const reader = new Reader(peer);
    for (let i = 0; i < 20; i++) {
      if (!isFirst) assertEquals(await reader.readLine(), `${i}`);
      for (const text of [`${i}`, "\n"]) await sendAll(peer, text);
      if (isFirst) assertEquals(await reader.readLine(), `${i}`);
    }
  };
  await using running = start({ handler: (peer) => talk(peer, false) });
  using one = await dial(running);
  const began = performance.now();
  const lines = withSession(one, (peer) => talk(peer, true));
  await inTime("20 lines there and back", lines);
  assert(performance.now() - began < 600, "with Nagle's algorithm, 40 ms each");
});

// Reader

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
  test(`Reader: its lines, wherever reads are cut (${JSON.stringify(text)})`, async () => {
    for (const source of [reads(text), ...waysToCut(text)]) {
      const reader = new Reader(source, 10);
      for (const line of lines) {
        if (line !== null) assertEquals(await reader.readLine(), line);
        else await assertRejects(() => reader.readLine(), InvalidData);
      }
      if (lines.includes(null)) continue;
      assertEquals(await Array.fromAsync(reader), []);
    }
  });
}

test("Reader: lines, so many bytes and the rest, in turn; buffered is what is left", async () => {
  for (const source of waysToCut("LEN 5\nhe\nlo\r\n好rest\nof it")) {
    const reader = new Reader(source);
    assertEquals(await reader.readLine(), "LEN 5");
    const five = await reader.readExactly(5);
    assertEquals(await reader.readLine(), "");
    assertEquals(await reader.readExactly(3), encode("好"));
    assertEquals(five, encode("he\nlo"));
    five!.fill(0); // a copy: it changes nothing of what follows
    assertEquals(await reader.readLine(), "rest");
    await assertRejects(() => reader.readExactly(6), UnexpectedEof);
    assertEquals(reader.buffered, encode("of it"));
    assertEquals(await reader.readAll(), "of it");
    assertEquals(reader.buffered, new Uint8Array(0));
    assertEquals([await reader.readAll(), await reader.readLine()], ["", null]);
    assertEquals(await reader.readExactly(1), null);
    assertEquals(await reader.readExactly(0), new Uint8Array(0));
  }
  const bytes = Uint8Array.of(0xff, 0x41, 0x0a, 0xe4); // no UTF-8
  assertEquals(await new Reader(reads(bytes)).readAll(), "\uFFFDA\n\uFFFD");
  assertEquals(await new Reader(reads(bytes)).readLine(), "\uFFFDA");
});

test("Reader: a wrong number of bytes is refused before it reads", async () => {
  const reader = new Reader({ read: () => fail(MINE) }, 3);
  for (const count of [4, -1, 1.5, NaN, Infinity]) {
    await assertRejects(() => reader.readExactly(count), InvalidData);
  }
  // And after an error of the source it may be called again.
  for (let i = 0; i < 2; i++) {
    await assertRejects(() => reader.readLine(), TypeError, "mine");
  }
});

/** Each method, called for so many bytes. */
const CALLS = {
  readLine: (reader: Reader) => reader.readLine(),
  readExactly: async (reader: Reader, count: number) =>
    new TextDecoder().decode((await reader.readExactly(count))!),
  readAll: (reader: Reader) => reader.readAll(),
};
for (const [method, call] of Object.entries(CALLS)) {
  test(`Reader: a message has no more bytes than the limit (${method})`, async () => {
    for (const limit of [10, undefined]) {
      const most = limit ?? 65_536;
      const whole = call(new Reader(bytesOf(most), limit), most);
      assertEquals(await whole, LARGEST.slice(0, most));
      const source = bytesOf(1_000_000);
      const tooLong = call(new Reader(source, limit), most + 1);
      await assertRejects(() => tooLong, InvalidData, `at most ${most}`);
      assert(source.left() > 800_000, "it reads on and on");
    }
    const later = new Reader(reads("123456789\n", LARGEST.slice(0, 10)), 10);
    await later.readLine();
    assertEquals(await call(later, 10), "x".repeat(10)); // Each has its own.
    const large = call(new Reader(bytesOf(99_999), Infinity), 99_999);
    assertEquals(await large, "x".repeat(99_999));
  });
  test(`Reader: it reads on in 64 KiB where reads give 4 KiB and more (${method})`, async () => {
    for (const most of [4_096, Infinity]) {
      const source = bytesOf(500_000, most);
      await call(new Reader(source, Infinity), 500_000);
      const { length } = source.rooms.find(({ length }) => length > 16_384)!;
      assert(length >= 57_344 && length <= 65_536, `${length} bytes`);
      assert(most < Infinity || source.rooms.length < 20);
    }
  });
  for (const [other, overlap] of Object.entries(CALLS)) {
    test(`Reader: a ${other} during a ${method} is a TypeError, and costs it nothing`, async () => {
      const arrival = Promise.withResolvers<void>();
      const source = reads("o", "ne\ntwo\n");
      const read = (room: Uint8Array) =>
        arrival.promise.then(() => source.read(room));
      const reader = new Reader({ read });

      const pending = call(reader, 3);
      for (let i = 0; i < 2; i++) {
        const refused = inTime("the refusal", overlap(reader, 3));
        await assertRejects(() => refused, TypeError, "pending");
      }
      arrival.resolve();

      const all = [await pending, await reader.readAll()];
      const ends = { readLine: "two\n", readExactly: "\ntwo\n" }[method];
      assertEquals(all, ends ? ["one", ends] : ["one\ntwo\n", ""]);
    });
  }
}

test("Reader: it holds 4 KiB at most for small messages, and for a silent peer", async () => {
  const [large, small] = [bytesOf(100_000), bytesOf(100_000, 100)];
  const sizes = ({ rooms }: typeof large) =>
    rooms.map(({ buffer }) => buffer.byteLength);
  const reader = new Reader(large, Infinity);
  await reader.readExactly(100_000);
  assertEquals(await reader.readLine(), null);
  assert(sizes(large)[0]! <= 4_096 && sizes(large).at(-1)! <= 4_096);
  const other = new Reader(small);
  while (await other.readExactly(50) !== null);
  assertEquals(Math.max(...sizes(small)), 4_096);
});

test("Reader: a line that comes byte by byte takes time by its bytes", async () => {
  const began = performance.now();
  const line = new Reader(bytesOf(200_000, 1), 200_000).readLine();
  assertEquals((await line)!.length, 200_000);
  assert(performance.now() - began < 1_500);
});

// sendAll

it("sendAll: of several at once, each is whole, in the order of the calls", async () => {
  using pair = await connected();
  const texts = [..."abcd"].map((letter) => letter.repeat(3_000_000));
  const all = rest(pair.here);
  const sends = texts.map((text) => sendAll(pair.there, text));
  await inTime("the sends", Promise.all(sends));
  await end(pair.there);
  assert(await all === texts.join(""));
});

test("sendAll: all is sent where a write takes a part, also after one that fails", async () => {
  const sent: number[] = [];
  const write = async (bytes: Uint8Array) => {
    await null;
    if (bytes[0] === 0 || sent.length > 99) throw MINE;
    sent.push(...bytes.subarray(0, 2));
    return Math.min(bytes.length, 2);
  };
  const writer = { write };
  const calls = [TEXT, "\0", encode(TEXT)].map((one) => sendAll(writer, one));
  const outcomes = await Promise.allSettled(calls);
  for (const text of ["", "!"]) await sendAll(writer, text); // later, too
  const statuses = outcomes.map(({ status }) => status);
  assertEquals(statuses, ["fulfilled", "rejected", "fulfilled"]);
  assertEquals(new Uint8Array(sent), encode(`${TEXT}${TEXT}!`));
});

// printable

/** Texts, and how they are shown. */
const SHOWN = {
  [`${TEXT}'"\\`]: `${TEXT}'"\\`,
  "one\r\n\ttwo\n": "one\\r\\n\\ttwo\\n",
  "\0\x1b[2J\x7f\x9b": "\\u0000\\u001b[2J\\u007f\\u009b",
  "\u2028\u2029\u202e": "\\u2028\\u2029\\u202e",
  "\u2066\u061c\ufeff": "\\u2066\\u061c\\ufeff",
};
for (const [text, shown] of Object.entries(SHOWN)) {
  test(`printable: what a terminal obeys becomes an escape (${shown})`, () => {
    assertEquals([printable(text), client.printable(text)], [shown, shown]);
  });
}

// onStopSignal

for (const name of STOP_SIGNALS) {
  test(`onStopSignal: it calls back once; 100 ms later a signal is the system's (${name})`, async () => {
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

test("onStopSignal: disposing of it, also within the call back, leaves nothing", () => {
  using signals = stopSignals();
  for (const isWithin of [false, true]) {
    const listening = onStopSignal(() =>
      isWithin && listening[Symbol.dispose]()
    );
    signals.send("SIGINT");
    for (let i = 0; i < 2; i++) listening[Symbol.dispose]();
    assertEquals(signals.names(), []);
  }
});

test("onStopSignal: on Windows there is no SIGTERM to listen for", () => {
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
  test(`showError: what may happen on any connection is one line (${name})`, async () => {
    using stderr = capture("stderr");
    const error = errorNamed(name);
    showError(error, { transport: "tcp", hostname: "::1", port: 7 });
    await turn();
    assertEquals(stderr.all, [`[::1]:7 ${error}`]);
  });
}

const MISTAKES = [
  Object.assign(new TypeError("my \x1b"), { code: 7 }),
  new DOMException("my \x1b", "InvalidCharacterError"), // of `atob`
  Object.assign(new Deno.errors.NotFound("my \x1b"), { code: "ENOENT" }),
];
for (const error of MISTAKES) {
  test(`showError: all else comes with its stack (${error.name})`, async () => {
    using stderr = capture("stderr");
    showError(error, address(7));
    await turn();
    const [line, next] = stderr.all;
    assert(line?.startsWith(`127.0.0.1:7 ${error.name}: my \\u001b`), line);
    assert(next?.startsWith("    at "), next);
  });
}

test("showError: where nobody reads, 1,000 errors wait, and further ones are lost", async () => {
  using stderr = capture("stderr");
  const reader = Promise.withResolvers<void>();
  stderr.gate = reader.promise;
  for (let i = 0; i < 1_500; i++) showError("an error", address(i));
  reader.resolve();
  await turn();
  assertEquals(stderr.all.length, 1_000);
  showError("a later one", address(7));
  await turn();
  assertEquals(stderr.all.at(-1), "127.0.0.1:7 a later one");
});

for (const by of ["session.end", "the signal"]) {
  test(`showError: it is onError's default; a given reason is one line (${by})`, async () => {
    using stderr = capture("stderr");
    const { signal, abort } = controlled();
    const handler: Handler = (_, session) =>
      by === "the signal" ? abort(ENOUGH) : session.end(ENOUGH);
    const running = serve({ listener: listenerOf([fake()]), signal, handler });
    await turn();
    await inTime("the end", running.shutdown());
    assertEquals(stderr.all, ["127.0.0.1:7 Error: enough"]);
  });
}

// server.ts, the command

/** A client, what is printed of it, and the exit code with `--once`. */
const OUTCOMES: [peer: object, outcome: string, code: number][] = [
  [reads("1\x1b\n\r\n"), "replied: 1\\u001b\\n", 0],
  [reads(), "left without a reply", 0],
  [reads(LARGEST, "x"), "sent too long a reply", 1],
  [{}, "timed out", 1],
  [failing("read", "ConnectionReset"), "reset the connection", 1],
  [failing("write", "EHOSTUNREACH"), "reset the connection", 1],
  [failing("read", "mine"), "failed", 1],
];
for (const [fields, outcome, code] of OUTCOMES) {
  test(`server.ts: with --once it serves one client, of which it says: ${outcome}`, async () => {
    const peers = [fake(fields), fake()];
    await using command = run("server.ts --once --timeout=0.05", peers);
    assertEquals(await command.code(), code);
    const lines = ["connected", outcome].map((what) => `127.0.0.1:7 ${what}`);
    assertEquals(command.out.all.slice(1), [...lines, "Served 1 client"]);
    assertEquals([peers[0]!.events.at(-1), peers[1]!.events], ["close", []]);
    assert(!peers[0]!.events.includes("setNoDelay true"), "it needs none");
    const [shown] = command.err.all; // with its stack
    assertEquals(shown, outcome === "failed" ? "Error: mine" : undefined);
  });
}

it("server.ts: a stop signal lets the clients finish, and accepts no more", async () => {
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
  assertEquals([await command.code(), command.err.all], [0, []]);
});

for (const [code, line] of ["server.ts", "server.ts --once"].entries()) {
  test(`server.ts: a stop signal before a client comes gives ${code} (${line})`, async () => {
    await using command = run(line, []);
    assertEquals(command.names(), []); // Deno may ask for the permission first.
    await command.line("Listening on 127.0.0.1:9");
    command.signal("SIGTERM");
    assertEquals([await command.code(), command.names()], [code, []]);
    await command.line("Stopping: 0 clients to finish");
    await command.line("Served 0 clients");
  });
}

for (let steps = 0; steps < 8; steps++) {
  test(`server.ts: with --once, a late signal changes nothing (${steps} microtasks)`, async () => {
    const peers = [fake(reads("one")), fake(reads("two"))];
    await using command = run("server.ts --once", peers);
    const line = "127.0.0.1:7 replied: one";
    await until(line, () => command.out.all.includes(line));
    for (let i = 0; i < steps; i++) await null;
    command.signal("SIGINT");
    assertEquals([await command.code(), peers[1]!.events], [0, []]);
    assertEquals(command.out.all.at(-1), "Served 1 client");
  });
}

test("server.ts: a mistake of its own is thrown, with its stack", async () => {
  await using command = run("server.ts", []);
  using _ = replace(Deno, "addSignalListener", () => fail(MINE));
  await assertRejects(() => command.code(), TypeError, "mine");
});

/** A command that listens, and whose lines nobody reads until `reader` resolves. */
async function stalled(line: string, ...peers: Deno.TcpConn[]) {
  const late = Promise.withResolvers<Deno.TcpConn>();
  const reader = Promise.withResolvers<void>();
  const command = run(line, [late.promise, ...peers]);
  await command.line("Listening on 127.0.0.1:9");
  command.out.gate = reader.promise;
  late.resolve(fake(reads("hi")));
  await turn();
  return { ...command, read: reader.resolve };
}

test("server.ts: where nobody reads, it serves on, and 16 MiB of lines wait", async () => {
  const text = "x".repeat(65_000);
  const replies = Array.from({ length: 270 }, (_, i) => `${i} ${text}`);
  const peers = replies.map((reply) => fake(reads(reply)));
  await using command = await stalled("server.ts", ...peers);
  await until("all are served", () => peers.at(-1)!.events.includes("close"));
  command.read();
  command.signal("SIGINT");
  const said = ["error: cannot print: nobody reads the lines"]; // once
  assertEquals([await command.code(), command.err.all], [0, said]);
  const lines = command.out.all.filter((line) => line.endsWith(text));
  assert(lines.length > 255 && lines.length < 259, `${lines.length} lines`);
  const kept = replies.slice(0, lines.length);
  assertEquals(lines, kept.map((reply) => `127.0.0.1:7 replied: ${reply}`));
});

/** The end of a command whose lines nobody reads. */
const STALLED: [line: string, code: number, errors: boolean][] = [
  ["server.ts --once", 1, true],
  ["server.ts", 0, true],
  ["server.ts", 0, false],
];
for (const [line, code, areErrorsRead] of STALLED) {
  const where = areErrorsRead ? "its lines" : "its lines, nor its errors";
  test(`server.ts: where nobody reads ${where}, it ends within 8 s (${line})`, async () => {
    using timer = timers((delay) => delay >= 1_000 ? 0 : delay);
    await using command = await stalled(line);
    if (!areErrorsRead) command.err.gate = command.out.gate;
    if (line === "server.ts") command.signal("SIGINT");
    assertEquals(await command.code(), code);
    const said = ["error: cannot print: nobody reads the lines"];
    assertEquals(command.err.all, areErrorsRead ? said : []);
    const waits = timer.delays.filter((delay) => delay >= 1_000);
    assert(waits.reduce((sum, one) => sum + one) < 8_000, `${waits}`);
    command.read();
  });
}

test("server.ts: at its end it waits for a slow reader", async () => {
  using timer = timers();
  await using command = await stalled("server.ts --once");
  await until("it waits", () => timer.delays.includes(5_000));
  command.signal("SIGINT"); // changes nothing any more
  command.read();
  assertEquals([await command.code(), command.err.all], [0, []]);
  assertEquals(command.out.all.length, 4);
});

test("server.ts: lines that can't be written are said once, and it goes on", async () => {
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
  assertEquals(await command.code(), 0);
  assertEquals(command.err.all, ["error: cannot print: closed"]);
  assertEquals(command.out.all.at(-1), "Served 1 client");
});

// exchange

it("exchange: it reads the greeting to its end, replies, and closes", async () => {
  using listener = listen();
  const events: string[] = [];
  const slowly = (event: string) => () => turn().then(() => events.push(event));
  const greeting = exchange({
    port: listener.addr.port,
    reply: "one\n",
    onConnect: slowly("connected"),
    onRead: (bytes) => events.push(new TextDecoder().decode(bytes)),
    onGreeting: slowly("greeted"),
  });
  using peer = await accept(listener);
  await send(peer, "\ufeffgood ");
  await until("that is read", () => events.length === 2);
  await end(peer, "day");
  assertEquals(await rest(peer), "one\n");
  assertEquals(await inTime("the greeting", greeting), "\ufeffgood day");
  assertEquals(events, ["connected", "good ", "good day", "greeted"]);
});

test("exchange: by default with 127.0.0.1:8888, for 10 s, with its reply", async () => {
  using timer = timers();
  const [sent, asked] = [[] as number[], [] as unknown[]];
  const write = async (bytes: Uint8Array) => await (sent.push(bytes[0]!) && 1);
  const pieces = Array.from(encode(TEXT), (byte) => Uint8Array.of(byte));
  using _ = replace(Deno, "connect", (options: Deno.ConnectOptions) => {
    asked.push(options.hostname, options.port);
    return Promise.resolve(fake({ ...reads(...pieces), write }));
  });
  const greeting = inTime("the greeting", exchange());
  assertEquals(await greeting, TEXT); // which came byte by byte
  assertEquals(new Uint8Array(sent), encode(REPLY)); // and so did this
  assertEquals([asked, timer.delays], [["127.0.0.1", 8888], [10_000]]);
});

test("exchange: a greeting has 1 to 65,536 bytes; any other is not replied to", async () => {
  assertEquals(await exchangeWith(fake(reads(LARGEST))), LARGEST);
  const [none, tooLong] = [fake(reads()), fake(reads(LARGEST, "x"))];
  await assertRejects(() => exchangeWith(none), UnexpectedEof);
  await assertRejects(() => exchangeWith(tooLong), InvalidData);
  assertEquals([none.events, tooLong.events], [["close"], ["close"]]);
});

it("exchange: it has its time for all of it, and 50 ms more", async () => {
  using listener = listen();
  const began = performance.now();
  const told = errorOf(exchange({ port: listener.addr.port, timeout: 30 }));
  using peer = await accept(listener);
  await send(peer, "hello");
  assertEquals(`${await told}`, "TimeoutError: time is up");
  assert(performance.now() - began >= 79);
  assertEquals(await rest(peer), "");
});

test("exchange: so it has where it does not connect, or in the very turn", async () => {
  const peer = fake(reads("hello"));
  const late = ({ signal }: Deno.ConnectOptions) =>
    once(signal!, "abort").then(() => peer);
  for (const connect of [hang, late]) {
    using _ = replace(Deno, "connect", connect);
    const told = errorOf(exchange({ timeout: 1 }));
    assertEquals(`${await told}`, "TimeoutError: time is up");
  }
  assertEquals(peer.events, ["close"]);
});

for (const name of ["BadResource", "Interrupted", "ConnectionReset"]) {
  test(`exchange: when time is up, only what that cut is told by it (${name})`, async () => {
    const error = errorNamed(name);
    const { promise: cut, reject } = Promise.withResolvers<never>();
    const close = () => reject(error);
    const peer = fake({ read: () => cut, [Symbol.dispose]: close });
    const told = await errorOf(exchangeWith(peer, { timeout: 1 }));
    const isCut = name !== "ConnectionReset";
    assertEquals(nameOf(told), isCut ? "TimeoutError" : name);
    const early = fake({ read: () => fail(error) }); // before that, nothing is
    assert(await errorOf(exchangeWith(early)) === error);
  });
}

test("exchange: where what it calls fails, so does it, and closes", async () => {
  for (const name of ["onConnect", "onRead", "onGreeting"]) {
    const peer = fake(reads("hello"));
    const given = exchangeWith(peer, { [name]: () => fail(MINE) });
    assert(await errorOf(given) === MINE);
    assertEquals(peer.events, ["close"]);
  }
});

test("exchange: a connection to itself is a refusal, and closed", async () => {
  const itself = fake({ remoteAddr: address(8888) });
  const given = exchangeWith(itself, { onConnect: () => fail(MINE) });
  await assertRejects(() => given, ConnectionRefused, "itself");
  assertEquals(itself.events, ["close"]);
});

// client.ts, the command

it("client.ts: it waits for a server, and prints each line as it happens", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const line = `client.ts -p ${port} --wait=9 --reply one\x1b\ntwo\n`;
  await using command = run(line, [refuse, refuse, Deno.connect]);
  using peer = await accept(listener);
  await command.line(`Connected to 127.0.0.1:${port}`);
  await end(peer, "good\tday\r\n");
  await command.line("Greeting: good\\tday");
  await command.line("Replied: one\\u001b\\ntwo");
  assertEquals(await rest(peer), "one\x1b\ntwo\n");
  assertEquals([await command.code(), command.err.all], [0, []]);
});

test("client.ts: by default it has 10 s", async () => {
  using timer = timers();
  const { code } = await outcomeOf("client.ts", [fake(reads("hi"))]);
  assertEquals([code, timer.delays], [0, [10_000]]);
});

const FINAL = [Deno.errors.NotCapable, TypeError, RangeError, URIError];
for (const type of [ConnectionRefused, BrokenPipe, Error, ...FINAL]) {
  test(`client.ts: where it can't connect, it tries again for --wait (${type.name})`, async () => {
    for (const wait of [0, 0.12]) {
      const times: number[] = [];
      const fails = () => fail(times.push(performance.now()) && new type("no"));
      const tries = Array(9).fill(fails);
      const { code } = await outcomeOf(`client.ts --wait=${wait}`, tries);
      const isRetried = wait > 0 && !FINAL.some((final) => final === type);
      const took = times.at(-1)! - times[0]!;
      assert(isRetried ? took >= 119 && times.length < 4 : times.length === 1);
      assertEquals(code, 1);
    }
  });
}

test("client.ts: each try has its whole time; once it was connected there is no other", async () => {
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
  assert(times.length === 2 && Math.min(...times) >= 149, `${times}`);
});

/** What a server does, and what the client says of it. */
const COMPLAINTS: [peer: Deno.TcpConn, line: string][] = [
  [fake(), "S took too long; give it more time with --timeout SECONDS"],
  [
    fake({}, "hello\x1b\n"),
    "the greeting of S has not ended: it ends when the server closes, or " +
    "half-closes; so far it is: hello\\u001b",
  ],
  [fake(reads()), "S closed without a greeting"],
  [fake(reads(LARGEST, "x")), "S sent a greeting longer than 65536 bytes"],
  [fake(failing("read", "ECONNRESET")), "S reset the connection"],
  [fake(failing("read", "mine")), "Error: mine"],
];
for (const [peer, said] of COMPLAINTS) {
  test(`client.ts: what is wrong is one line, after its own: ${said}`, async () => {
    const line = "client.ts --timeout=0.05";
    const { code, out, err } = await outcomeOf(line, [peer]);
    assertEquals([code, out[0]], [1, "Connected to 127.0.0.1:7"]);
    assertEquals(err[0]?.replace("127.0.0.1:8888", "S"), `error: ${said}`);
    assertEquals(err.length > 1, said === "Error: mine"); // with its stack
  });
}

const HOSTS = ["127.1.2.3", "::1", "localhost", "192.0.2.1", "a.example"];
for (const host of HOSTS) {
  test(`client.ts: where another machine refuses, its --host may be why (${host})`, async () => {
    const { err } = await outcomeOf(`client.ts --host ${host}`, [refuse]);
    const hint = "; or it listens on another address: see its --host";
    assertEquals(err[0]!.endsWith(hint), /^192|^a/.test(host));
  });
}

// Both commands

it("both: they talk to each other, with --quiet in fewer lines", async () => {
  await using one = await startServer("--once --greeting=hello --quiet");
  const line = `client.ts --port=${one.addr.port} --reply=hi -q`;
  await using two = run(line); // Its stdout is that of both now.
  assertEquals([await two.code(), await one.code()], [0, 0]);
  assertEquals(two.out.all, ["hello", "Served 1 client"]);
});

/** Commands, and after how many lines they can't print. */
const PRINTING: [line: string, after: number][] = [
  ["server.ts --once", 0],
  ["server.ts -h", 0],
  ["client.ts -h", 0],
  ...[0, 1, 2].map((after): [string, number] => ["client.ts", after]),
];
for (const [line, after] of PRINTING) {
  test(`both: where a line can't be printed, another says so, and 1 (${line}, ${after})`, async () => {
    const peer = fake(reads("hi"));
    await using command = run(line, [peer]);
    command.out.room = after;
    assertEquals(await command.code(), 1);
    assertEquals(command.err.all, ["error: cannot print: closed"]);
    assert(line.endsWith("-h") || peer.events.at(-1) === "close");
  });
}

const A = "[::1]:65535";
const REFUSALS: [script: string, name: string, line: string][] = [
  ["server.ts", "AddrInUse", `${A} is in use; choose another port with --port`],
  ["server.ts", "PermissionDenied", `on ${A}; choose a port from 1024`],
  ["server.ts", "AddrNotAvailable", `${A} is not an address of this machine;`],
  ["server.ts", "NotCapable", `listen on ${A}; run with --allow-net=${A}`],
  ["server.ts", "TimedOut", `cannot listen on ${A}: no`],
  ["client.ts", "ConnectionRefused", `nothing listens on ${A}; start the`],
  ["client.ts", "NotCapable", `connect to ${A}; run with --allow-net=${A}`],
  ["client.ts", "TimedOut", `cannot reach ${A}: no`],
];
for (const [script, name, part] of REFUSALS) {
  test(`both: where the system refuses, a line says what to do (${script}, ${name})`, async () => {
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
  "client.ts --reply --quiet": "--reply needs a value: --reply=VALUE",
  "server.ts --host=": "--host needs a value: --host=VALUE",
  "server.ts --host ": "--host needs a value: --host=VALUE",
  "client.ts --quiet=no": "--quiet takes no value",
  "server.ts --once=1": "--once takes no value",
  "server.ts -q=no": "-q takes no value",
  "client.ts -qh=x": "takes no value",
  "server.ts -q0": "-q takes no value",
  "client.ts -h0": "-h takes no value",
  "server.ts --help=1": "--help takes no value",
  "client.ts --help=1": "--help takes no value",
  "server.ts --port 65536": 'a whole number from 0 to 65535, not "65536"',
  "server.ts --port 80.5": 'a whole number from 0 to 65535, not "80.5"',
  "server.ts --timeout 0": 'must be a number from 0.001 to 2147483, not "0"',
  "server.ts --timeout 1e3": 'a number from 0.001 to 2147483, not "1e3"',
  "server.ts --max-clients 0": "clients must be a whole number from 1 to 900",
  "client.ts --port 0": 'port must be a whole number from 1 to 65535, not "0"',
  "client.ts --timeout 0": 'must be a number from 0.001 to 2147483, not "0"',
  "client.ts --wait=-1": 'wait must be a number from 0 to 2147483, not "-1"',
};
for (const [line, part] of Object.entries(WRONG)) {
  test(`both: a wrong command line is one line that names it, and 2 (${line})`, async () => {
    const { code, out, err } = await outcomeOf(line, () => fail(MINE));
    assertEquals([code, out, err.length], [2, [], 1]);
    assert(/^error: .*; see --help$/.test(err[0]!), err[0]);
    assert(err[0]!.includes(part), err[0]);
  });
}

for (const script of ["server.ts", "client.ts"]) {
  test(`both: a command ends when its error is said, or can't be (${script})`, async () => {
    await using command = run(`${script} --nosuch`);
    const reader = Promise.withResolvers<void>();
    command.err.gate = reader.promise;
    command.err.room = 0;
    assertEquals(await isSettled(command.code()), false);
    reader.resolve();
    assertEquals(await command.code(), 2);
  });
}

const SHARED = { host: "127.0.0.1", port: 8888, timeout: 10, quiet: "off" };
const OF_SERVER = { greeting: GREETING, "max-clients": 1024, once: "off" };
const FLAGS = {
  "server.ts": { ...SHARED, ...OF_SERVER },
  "client.ts": { ...SHARED, reply: REPLY, wait: 0 },
};
for (const [script, flags] of Object.entries(FLAGS)) {
  test(`both: the help has every flag, with its default (${script})`, async () => {
    for (const flag of ["--help", "-h", "-qh"]) {
      const { code, out, err } = await outcomeOf(`${script} ${flag}`);
      assertEquals([code, err], [0, []]);
      for (const [name, value] of Object.entries(flags)) {
        assertMatch(out.join("\n"), RegExp(`--${name}\\b.*\\(${value}\\)`));
      }
    }
  });
}

// The fakes, beside the real thing

it("fakes: a close cuts what is pending, and later calls", async () => {
  using pair = await connected();
  const real = Deno.listen({ hostname: "127.0.0.1", port: 0 });
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
    const reading = inTime("the read", readOne(peer));
    for (let i = 0; i < 2; i++) peer[Symbol.dispose]();
    await assertRejects(() => reading, Interrupted);
    await assertRejects(() => peer.write(encode("x")), BadResource);
    assertThrows(() => peer.setNoDelay(), BadResource);
    assertThrows(() => peer.close(), BadResource);
  }
});

it("fakes: a write takes a part; an aborted connect has the signal's reason", async () => {
  using pair = await connected();
  const part = await pair.there.write(encode(MORE_THAN_BUFFERS));
  assert(part > 0 && part < MORE_THAN_BUFFERS.length, `${part} bytes`);
  const signal = AbortSignal.abort("why");
  for (const connect of [Deno.connect, hang]) {
    assertEquals(await errorOf(connect({ port: 1, signal })), "why");
  }
});

it("fakes: on Linux, a connection to itself is possible, and has one address", async () => {
  if (Deno.build.os !== "linux") return;
  using free = listen();
  const { port, hostname: host } = free.addr;
  free.close();
  const from = { localAddress: host, localPort: port };
  const socket = connectNode({ host, port, ...from });
  await inTime("the connection", once(socket, "connect"));
  assertEquals([socket.localPort, socket.remotePort], [port, port]);
  await inTime("its close", once(socket.destroy(), "close"));
});

// What the tests share

type Handler = (connection: Deno.TcpConn, session: Session) => unknown;
/** What a fake gives: a connection, now or later. A function may throw. */
// deno-lint-ignore no-explicit-any
type Given = Deno.TcpConn | Promise<Deno.TcpConn> | ((options: any) => any);

/** Of the running test: errors that nobody awaited, and timers to be cleared. */
let leftovers = { errors: [] as unknown[], timers: [] as unknown[] };
for (const type of ["error", "unhandledrejection"]) {
  addEventListener(type, (event) => {
    event.preventDefault(); // or it would cancel all other tests
    const { reason, error } = event as PromiseRejectionEvent & ErrorEvent;
    leftovers.errors.push(reason ?? error);
  });
}

/** A test without sockets. */
function test(name: string, fn: () => unknown, ignore = false): void {
  const guarded = async () => {
    const { errors, timers } = leftovers = { errors: [], timers: [] };
    try {
      await inTime("its end", Promise.try(fn), 10_000);
    } finally {
      await turn();
      for (const timer of timers) clearTimeout(timer as number);
    }
    if (errors.length > 0) throw errors[0];
  };
  Deno.test({ name, ignore, fn: guarded });
}

/** A test with sockets. */
function it(name: string, fn: () => unknown): void {
  test(name, fn, state !== "granted");
}

type Side = (
  ...all: [Handler, options?: SessionOptions, peer?: Deno.TcpConn]
) => Promise<unknown>;

/** Two tests: `run` gives the error that is told of a handler, or "no error". */
function onBothSides(name: string, fn: (run: Side) => unknown): void {
  const inServe: Side = async (handler, options = {}, peer = fake()) => {
    await using running = start({ ...options, handler }, [peer]);
    await running.accepted.next();
    await until("it is left", () => running.clients === 0);
    return running.errors.all.length ? running.errors.all[0]![0] : "no error";
  };
  const inWithSession: Side = (handler, options, peer = fake()) => {
    const given = withSession(peer, handler, options);
    return inTime("it", given.then(() => "no error", (error) => error));
  };
  test(`session: ${name}, in serve`, () => fn(inServe));
  test(`session: ${name}, in withSession`, () => fn(inWithSession));
}

/** Gives what the promise gives, within two seconds. */
function inTime<T>(
  what: string,
  promise: Promise<T>,
  most = 2_000,
): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const fails = () => reject(new Error(`waited ${most} ms for ${what}`));
  const timer = setRealTimeout(fails, most);
  leftovers.timers.push(timer);
  const first = Promise.race([promise, late]);
  const inTime = first.finally(() => clearTimeout(timer));
  inTime.catch(nothing); // It may be awaited later.
  return inTime;
}

/** Whether it settles within so many milliseconds, or in the next turn. */
async function isSettled(promise: Promise<unknown>, most = 0) {
  const { promise: late, resolve } = Promise.withResolvers<boolean>();
  const timer = setRealTimeout(resolve, most, false);
  const settled = promise.then(() => true, () => true);
  return await Promise.race([settled, late]).finally(() => clearTimeout(timer));
}

/** Waits until it is so, two seconds at most. */
async function until(what: string, isSo: () => boolean): Promise<void> {
  for (const end = Date.now() + 2_000; !isSo(); await turn()) {
    if (Date.now() > end) throw new Error(`waited 2 s until ${what}`);
  }
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

/** A connection as over TLS, without `setNoDelay`. */
function fakeTls(fields: object = {}): Deno.TcpConn {
  const { setNoDelay: _, ...connection } = fake(fields);
  return connection as unknown as Deno.TcpConn;
}

/** A method that rejects with this error. */
function failing(method: string, name: string) {
  return { [method]: () => Promise.reject(errorNamed(name)) };
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
  return bounded(own as unknown as Deno.TcpListener);
}

/** A server that does not stop is to fail its test: it may not spin. */
function bounded(listener: Deno.TcpListener): Deno.TcpListener {
  const accept = listener.accept.bind(listener);
  let failures = 0;
  const hangs = async (error: unknown) => {
    if (error instanceof BadResource && ++failures > 3) await hang();
    throw error;
  };
  return Object.assign(listener, { accept: () => accept().catch(hangs) });
}

/** A server under test, on a free port or with fakes, its clients, its errors. */
function start(options: Partial<ServeOptions> = {}, given?: Given[]) {
  const errors = new Events<[error: unknown, client: Deno.NetAddr]>();
  const accepted = new Events<Deno.TcpConn>();
  const listener = given ? listenerOf(given) : listen();
  const running = serve({
    onError: (error, client) => errors.push([error, client]),
    ...options,
    listener,
    handler: (connection, session) => {
      accepted.push(connection);
      return options.handler?.(connection, session);
    },
  });
  const { shutdown: end } = running;
  const shutdown = (grace?: number) => inTime("the end", end(grace));
  const told = () => errors.all.map(([error]) => `${error}`);
  const own = { errors, accepted, listener, shutdown, told };
  // It does not fail: that is for the tests of the end.
  const dispose = async () => void await isSettled(end(0), 100);
  return Object.assign(running, { ...own, [Symbol.asyncDispose]: dispose });
}

/** Replaces a property until the end of the block. */
function replace<T extends object>(object: T, name: keyof T, value: unknown) {
  const original = object[name];
  object[name] = value as never;
  return { [Symbol.dispose]: () => void (object[name] = original) };
}

/** The exchange with a connection that is given. */
async function exchangeWith(peer: Deno.TcpConn, options: ExchangeOptions = {}) {
  using _ = replace(Deno, "connect", () => Promise.resolve(peer));
  return await inTime("the exchange", exchange(options));
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

/** A clock that only the test moves, with the intervals that look at it. */
function fakeClock() {
  let time = Math.round(performance.now()); // so that sums are exact
  const looks = new Set<() => void>();
  const set = (look: () => void, delay: number) => {
    assertEquals(delay, 50);
    return looks.add(look) && look;
  };
  const clear = (look: () => void) => looks.delete(look);
  const replaced = new DisposableStack();
  replaced.use(replace(performance, "now", () => time));
  replaced.use(replace(globalThis, "setInterval", set));
  replaced.use(replace(globalThis, "clearInterval", clear));
  const pass = (milliseconds: number, step = 50) => {
    for (let left = milliseconds; left > 0; left -= step) {
      time += Math.min(left, step);
      looks.forEach((look) => look());
    }
  };
  return Object.assign(replaced, { looks, pass });
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
  const [out, err] = [capture("stdout"), capture("stderr")];
  replaced.use(out);
  replaced.use(err);
  const { listen } = Deno;
  const real = (options: Deno.TcpListenOptions) => bounded(listen(options));
  const connect = async (options: Deno.ConnectOptions) => {
    const next = (given as Given[]).shift();
    return await (typeof next === "function" ? next(options) : next);
  };
  const [toListen, toConnect] = typeof given === "function"
    ? [given, given]
    : given
    ? [() => listenerOf(given), connect]
    : [real, Deno.connect];
  replaced.use(replace(Deno, "listen", toListen));
  replaced.use(replace(Deno, "connect", toConnect));
  const [script, ...flags] = line.split(" ");
  const end = (script === "server.ts" ? server : client).main(flags);
  end.catch(nothing); // It may fail in a test that has failed.
  const code = () => inTime("the command's end", end);
  const own = {
    ...{ out, err, signal, names, code },
    line: async (line: string) => assertEquals(await out.next(line), line),
  };
  const dispose = async () => {
    if (!await isSettled(end)) signal("SIGINT");
    await isSettled(end, 100);
    replaced.dispose();
  };
  return { ...own, [Symbol.asyncDispose]: dispose };
}

/** What comes of a command that ends by itself. */
async function outcomeOf(...all: Parameters<typeof run>) {
  await using command = run(...all);
  const code = await command.code();
  return { code, out: command.out.all, err: command.err.all };
}

/** The server's command on a free port, once it listens. */
async function startServer(flags = "") {
  const command = run(`server.ts --port 0 ${flags}`.trim());
  const line = await command.out.next("it listens");
  const port = Number(/^Listening on 127\.0\.0\.1:(\d+)$/.exec(line)![1]);
  return { ...command, addr: address(port) };
}

/** Both ends of a connection. */
async function connected() {
  using listener = listen();
  const both = [dial(listener), accept(listener)] as const;
  const [here, there] = await Promise.all(both);
  const ends = new DisposableStack();
  return Object.assign(ends, { here: ends.use(here), there: ends.use(there) });
}

const listen = () => bounded(Deno.listen({ hostname: "127.0.0.1", port: 0 }));
const dial = ({ addr: { port } }: { addr: Deno.NetAddr }) =>
  inTime("a connection", Deno.connect({ port }));
const accept = (listener: Deno.TcpListener) =>
  inTime("a client", listener.accept());
/** All that comes, to the end. */
const rest = (peer: Deno.TcpConn) =>
  inTime("the end of what comes", new Reader(peer, Infinity).readAll());
const send = (peer: Deno.TcpConn, text: string) =>
  inTime("a write", sendAll(peer, text));
/** Sends a text, and half-closes. */
const end = (peer: Deno.TcpConn, text = "") =>
  send(peer, text).then(() => peer.closeWrite());

/** What the promise rejects with. */
function errorOf(promise: Promise<unknown>): Promise<unknown> {
  const isFine = () => fail(new Error("there was no error"));
  return inTime("an error", promise.then(isFine, (error) => error));
}

/** An error of Deno's, of the web's, or of the system's, by its name or code. */
function errorNamed(name: string): Error {
  if (name.endsWith("tError")) return new DOMException("no", name);
  const type = Deno.errors[name as "TimedOut"] ?? Error;
  return Object.assign(
    new type(type === Error ? name : "no"),
    /^E/.test(name) && { code: name },
  );
}

/** Connects to nothing, until it is aborted. */
async function hang(options?: Deno.ConnectOptions): Promise<never> {
  const signal = options?.signal ?? new AbortController().signal;
  if (!signal.aborted) await once(signal, "abort");
  throw signal.reason;
}

function fail(error: unknown): never {
  throw error;
}
function encode(text: string) {
  return new TextEncoder().encode(text);
}
function nothing(): void {}
function readOne(peer: Deno.Conn): Promise<number | null> {
  return peer.read(new Uint8Array(1));
}
function address(port: number): Deno.NetAddr {
  return { transport: "tcp", hostname: "127.0.0.1", port };
}
const turn = () => new Promise<void>((resolve) => setRealTimeout(resolve, 0));
const fakes = (length: number) => Array.from({ length }, () => fake());
const refuse = () => Promise.reject(new ConnectionRefused("no"));
const untilEnded = (_: unknown, { signal }: Session) =>
  new Promise((resolve) => signal.onabort = resolve);
const controlled = () => {
  const controller = new AbortController();
  const abort = (reason: unknown) => controller.abort(reason);
  return { signal: controller.signal, abort };
};
const nameOf = (error: unknown) => (error as Error).name;
const listenersOn = (signal: AbortSignal) =>
  getEventListeners(signal, "abort").length;
