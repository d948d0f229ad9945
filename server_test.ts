/**
 * Tests of the helpers, the exchange, `serve`, `connect` and both commands, on
 * real sockets wherever the loopback can provoke what a rule is about. What the
 * tests share comes last. To run: `deno test --allow-net`.
 *
 * @module
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertRejects, assertThrows } from "@std/assert";
import { getEventListeners, once } from "node:events";
import { connect as connectNode } from "node:net";
import * as client from "./client.ts";
import { connect, reply } from "./client.ts";
import * as server from "./server.ts";
import { greet, onStopSignal, printable, Reader, sendAll } from "./server.ts";
import { serve, type ServeOptions, type Session } from "./server.ts";

const { AddrInUse, AddrNotAvailable, BadResource, BrokenPipe } = Deno.errors;
const { ConnectionRefused, ConnectionReset, Interrupted } = Deno.errors;
const { InvalidData, NetworkUnreachable, NotCapable } = Deno.errors;
const { NotConnected, PermissionDenied, TimedOut, UnexpectedEof } = Deno.errors;

const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const TEXT = "你好,客戶端 👋🏽";
const MORE_THAN_BUFFERS = "x".repeat(20_000_000);
const TOO_LONG = "x".repeat(65_537);
const WRONG_TIMES = [0, -1, NaN, -Infinity, 2 ** 31];
const IS_WINDOWS = Deno.build.os === "windows";
const STOP_SIGNALS = IS_WINDOWS ? ["SIGINT"] : ["SIGINT", "SIGTERM"];
const { state } = await Deno.permissions.query({ name: "net" });
// For what other systems do in another way.
const onLinux = Deno.build.os === "linux" ? it : Deno.test.ignore;

it("sendAll: of several at once, each is whole, in the order of the calls", async () => {
  using pair = await connected();
  const texts = [..."abcd"].map((letter) => letter.repeat(5_000_000));
  const all = receiveAll(pair.here);
  const both = [sendAll, client.sendAll];
  const sent = texts.map((text, i) => both[i % 2]!(pair.there, text));
  await Promise.all([...sent, sendAndEnd(pair.there, "e")]);
  assert(await all === texts.join("") + "e");
});

test("sendAll: all is sent where a write takes a part, also after one that fails", async () => {
  const sent: number[] = [];
  const write = async (bytes: Uint8Array) => {
    await turn();
    if (bytes[0] === 0) throw new TimedOut("0");
    sent.push(...bytes.subarray(0, 2));
    return Math.min(bytes.length, 2);
  };
  const writer = { write };
  const calls = [TEXT, "\0", encode(TEXT)].map((one) => sendAll(writer, one));
  const outcomes = (await Promise.allSettled(calls)).map((one) => one.status);
  assertEquals(outcomes, ["fulfilled", "rejected", "fulfilled"]);
  await assertRejects(() => sendAll(writer, "\0"), TimedOut);
  for (const text of ["", "!"]) await sendAll(writer, text); // later, too
  assertEquals(new Uint8Array(sent), encode(`${TEXT}${TEXT}!`));
});

test("Reader: as much as the limit is taken, and no more", async () => {
  for (const limit of [10, undefined]) {
    const most = "x".repeat(limit ?? 65_536);
    const of = (...pieces: string[]) => new Reader(reads(...pieces), limit);
    assertEquals(await of(most).readAll(), most);
    assertEquals(await of(most, "\r\n").readLine(), most);
    assertEquals(await of(most).readExactly(most.length), encode(most));
    await assertRejects(() => of(most, "x").readAll(), InvalidData);
    for (const method of ["readAll", "readLine", "readExactly"] as const) {
      const endless = reads(...Array(20).fill(most)); // without a line end
      const act = () => new Reader(endless, limit)[method](most.length + 1);
      await assertRejects(act, InvalidData);
      assert(await endless.read(new Uint8Array(1)) !== null, "it read on");
    }
  }
  const source = { read: () => fail(new Error("it read")) };
  for (const count of [4, -1, NaN, 1.5, Infinity, -Infinity, 2 ** 32]) {
    const reader = new Reader(source, 3);
    await assertRejects(() => reader.readExactly(count), InvalidData);
    assertEquals(await reader.readExactly(0), new Uint8Array(0));
  }
});

test("Reader: line ends, and texts, wherever the reads are cut", async () => {
  const text = `\uFEFFone\n\r\ntwo\r\n${TEXT}\n\na\rb\r\r\nrest\r`;
  const lines = ["\uFEFFone", "", "two", TEXT, "", "a\rb\r", "rest\r"];
  for (const type of [Reader, client.Reader]) {
    for (const source of ways(text)) {
      const reader = new type(source);
      assertEquals(await Array.fromAsync(reader), lines);
      assertEquals(await reader.readLine(), null);
    }
    for (const one of ways(text)) {
      assertEquals(await new type(one).readAll(), text);
    }
    assertEquals(await Array.fromAsync(new type(reads())), []);
  }
  const bytes = Uint8Array.of(0xff, 0x41, 0x0a, 0xe4, 0x0a, 0x0d); // not UTF-8
  const broken = ["\uFFFDA", "\uFFFD", "\r"];
  assertEquals(await Array.fromAsync(new Reader(reads(bytes))), broken);
  assertEquals(await receiveAll(reads(bytes)), broken.join("\n"));
});

test("Reader: a line over the limit is an error after those before it, exactly", async () => {
  const cases = {
    "one\r\ntwo\n好\n": 3, // three bytes
    "one\ntwo\r": 1,
    "one\ntwo!": 1,
    "one\ntwo!\nsix\n": 1,
    "one\ntwo\r\r\nsix": 1,
    "one\ntwo\r!\r\n": 1,
    "one\n好!\n": 1,
  };
  for (const [text, count] of Object.entries(cases)) {
    for (const source of ways(text)) {
      const lines: string[] = [];
      const note = (line: string) => lines.push(line);
      const all = Array.fromAsync(new Reader(source, 3), note);
      await (count === 3 ? all : assertRejects(() => all, InvalidData));
      assertEquals(lines, ["one", "two", "好"].slice(0, count));
    }
  }
});

test("Reader: lines, so many bytes and the rest, in turn on one stream", async () => {
  for (const source of ways("LEN 5\nhe\nlo\r\n好rest\nof it")) {
    const reader = new Reader(source);
    assertEquals(await reader.readLine(), "LEN 5");
    const five = await reader.readExactly(5);
    assertEquals(await reader.readLine(), "");
    assertEquals(await reader.readExactly(3), encode("好"));
    assertEquals([five, five!.buffer.byteLength], [encode("he\nlo"), 5]);
    five!.fill(0); // a copy: it changes nothing
    assertEquals(await reader.readLine(), "rest");
    await assertRejects(() => reader.readExactly(6), UnexpectedEof);
    assertEquals(reader.buffered, encode("of it"));
    assertEquals(await reader.readAll(), "of it");
    assertEquals([await reader.readAll(), await reader.readLine()], ["", null]);
    assertEquals(await reader.readExactly(1), null);
  }
});

test("Reader: a large message takes time by its bytes, a silent peer little room", async () => {
  for (const [step, count] of [[1, 500_000], [Infinity, 5_000_000]] as const) {
    for (const method of ["readLine", "readExactly", "readAll"] as const) {
      const sizes: number[] = [];
      let left = count + 9;
      const read = async (room: Uint8Array<ArrayBuffer>) => {
        if (left % 10_000 === 0) await turn(); // lets the test be stopped
        const held = [room, reader.buffered]; // meanwhile
        sizes.push(...held.map((one) => one.buffer.byteLength));
        const taken = Math.min(left, room.length, step);
        room.fill(0x78, 0, taken);
        left -= taken;
        return taken || null;
      };
      const reader = new Reader({ read }, count);
      await reader.readExactly(9);
      assertEquals((await reader[method](count))?.length, count);
      await reader.readLine(); // silent from here on
      assert(sizes[0]! <= 4096, `${sizes[0]} bytes at first`);
      assert(method !== "readExactly" || sizes.at(-1)! <= 4096, `${sizes}`);
      assert(step === 1 || sizes.length < 100, `${sizes.length} reads`);
    }
  }
});

test("printable: what a terminal obeys becomes an escape", () => {
  const cases = {
    [`${TEXT}'"\\`]: `${TEXT}'"\\`,
    "one\r\n\ttwo\n": "one\\r\\n\\ttwo\\n",
    "\0\x1b[2J\x7f\x9b": "\\u0000\\u001b[2J\\u007f\\u009b",
    "\u2028\u2029\u202e\u2066\u061c": "\\u2028\\u2029\\u202e\\u2066\\u061c",
  };
  for (const [text, shown] of Object.entries(cases)) {
    assertEquals(printable(text), shown);
  }
});

it("greet: the greeting is whole, and ends its half, not the client's", async () => {
  using pair = await connected();
  const replied = greet(pair.there, MORE_THAN_BUFFERS);
  await turn(); // so late is it read
  assert(await receiveAll(pair.here) === MORE_THAN_BUFFERS);
  await sendAll(pair.here, "still ");
  const most = "x".repeat(65_530);
  await sendAndEnd(pair.here, most);
  assert(await replied === `still ${most}`);
});

onLinux("greet: a client that replied and left before is heard", async () => {
  for (const text of [REPLY, ""]) {
    using pair = await connected();
    await sendAll(pair.here, text);
    pair.here.close();
    assertEquals(await greet(pair.there, GREETING), text);
  }
});

test("greet: only a client that has ended before is still heard", async () => {
  for (const step of ["write", "closeWrite"]) {
    const greeted = (error: Error) => {
      const broken = { [step]: () => Promise.reject(error) };
      return greet(fake({ ...reads("a reply"), ...broken }), GREETING);
    };
    for (const type of [BrokenPipe, NotConnected]) {
      assertEquals(await greeted(new type("")), "a reply");
    }
    for (const type of [TimedOut, ConnectionReset, Interrupted, Error]) {
      await assertRejects(() => greeted(new type("")), type);
    }
  }
});

it("greet, reply: the lesson's client and server are understood", async () => {
  // The client: one recv, one send, close. The server: accept, send, close.
  using one = await connected(), other = await connected();
  const replied = greet(one.there, GREETING);
  await one.here.read(new Uint8Array(1024));
  await sendAll(one.here, REPLY);
  one.here.close();
  assertEquals(await replied, REPLY);
  await sendAll(other.there, GREETING);
  other.there.close();
  assertEquals(await reply(other.here, () => REPLY), GREETING);
});

onBoth("session: a silent peer is left when the time is up", async (side) => {
  const send = (one: Deno.TcpConn) => sendAll(one, MORE_THAN_BUFFERS);
  const times: number[] = [];
  for (const act of [receiveOne, receiveOne, send]) {
    const began = performance.now();
    const told = await side({ timeout: 50, handler: (one) => act(one) });
    times.push(performance.now() - began);
    assertEquals(told.map(nameOf), ["TimeoutError"]);
  }
  const shortest = Math.min(...times); // 50 ms, and 50 to 100 more
  assert(shortest >= 95 && shortest < 190, `${times}`);
});

onBoth("session: a renew holds until the next one", async (side) => {
  type Act = (session: Session, connection: Deno.TcpConn) => unknown;
  const refused = (session: Session) => (time: number) =>
    assertThrows(() => session.renew(time), RangeError, "timeout");
  const talk = (isRenewed: boolean): Act => async (session, connection) => {
    for (let i = 0; i < 8; i++) {
      await pause(60);
      await sendAll(connection, "more\n");
      if (isRenewed) session.renew();
    }
  };
  const acts: [number, Act, number][] = [
    [250, talk(false), 295],
    [250, talk(true), Infinity],
    [Infinity, (session) => session.renew(50), 95],
    [20, (session) => session.renew(150), 195],
    [50, (session) => WRONG_TIMES.forEach(refused(session)), 95],
    [50, async (session) => {
      session.renew(Infinity);
      await pause(200);
      session.renew();
    }, 295],
    [Infinity, (session) => (session.renew(50), session.renew()), Infinity],
  ];
  await Promise.all(acts.map(async ([timeout, act, least]) => {
    const began = performance.now();
    const handler: Handler = async (connection, session) => {
      await act(session, connection);
      await (least === Infinity ? pause(200) : receiveOne(connection));
    };
    const told = await side({ timeout, handler });
    const took = performance.now() - began;
    assertEquals(told.map(nameOf), least < Infinity ? ["TimeoutError"] : []);
    assert(took >= least || told.length === 0, `${took} of ${least}`);
  }));
});

onBoth("session: an early end rejects, and has a reason", async (side) => {
  const acts: [(one: Session, other: AbortController) => void, string][] = [
    [(session) => session.renew(20), "TimeoutError: time is up"],
    [(_, controller) => controller.abort(new Error("enough")), "Error: enough"],
    [(session) => session.end(new Error("enough")), "Error: enough"],
    [(session) => session.end(null), "null"],
  ];
  for (const [act, reason] of acts) {
    for (const isAsked of [false, true]) {
      const controller = new AbortController();
      const signals: AbortSignal[] = [];
      const handler: Handler = async (connection, session) => {
        const send = () => sendAll(connection, MORE_THAN_BUFFERS);
        const pending = [send(), receiveOne(connection)];
        if (isAsked) signals.push(session.signal);
        assert(!signals[0]?.aborted);
        act(session, controller);
        const outcomes = await Promise.allSettled(pending);
        assert(outcomes.every((one) => one.status === "rejected"));
        await assertRejects(send, BadResource);
        session.end(new Error("a second one"));
        session.renew(1); // for nothing
        signals.push(session.signal);
        if (!isAsked) await pending[1];
      };
      const told = await side({ signal: controller.signal, handler });
      const [first, last] = [signals[0]!, signals.at(-1)!];
      assert(first === last && first.aborted && first.reason === told[0]);
      assertEquals(told.map(String), [reason]);
    }
  }
});

onBoth("session: after a good end nothing ends it", async (side) => {
  for (const isAsked of [false, true]) {
    const controller = new AbortController();
    let kept: Session | undefined;
    const handler: Handler = (connection, session) => {
      kept = session;
      if (isAsked) assert(!session.signal.aborted);
      else connection.close(); // by itself
    };
    assertEquals(await side({ signal: controller.signal, handler }), []);
    kept!.renew();
    kept!.end(new Error("late"));
    controller.abort();
    assertEquals(kept!.signal.aborted, false);
  }
});

onBoth("session: what a handler throws is told as it is", async (side) => {
  const own = [TypeError, ConnectionRefused, ConnectionReset];
  for (const type of [...own, BadResource, Interrupted]) {
    for (const isEarly of own.includes(type) ? [false, true] : [false]) {
      const errors: Error[] = []; // one for each call
      const handler: Handler = async (connection, session) => {
        try {
          if (isEarly) session.end(new Error("enough"));
          if (isEarly) await receiveOne(connection);
        } finally {
          fail(errors[errors.push(new type("mine")) - 1]); // a bug in the clean-up
        }
      };
      const [told, ...more] = await side({ handler });
      assert(told === errors[0] && more.length === 0 && errors.length === 1);
    }
  }
});

it("serve: each has its own time, whoever came, left or was renewed before", async () => {
  const sessions: Session[] = [];
  const controller = new AbortController();
  const running = start({
    timeout: 400,
    signal: controller.signal,
    handler: (connection, session) => {
      sessions.push(session);
      return receiveOne(connection);
    },
  });
  const ones: Deno.TcpConn[] = [];
  while (ones.length < 6) {
    ones.push(await dial(running));
    await running.accepted.next();
  }
  for (const i of [1, 5, 0]) ones[i]!.close();
  await pause(150);
  for (const i of [2, 4]) sessions[i]!.renew();
  assertEquals((await running.errors.next())[1], ones[3]!.localAddr);
  controller.abort("enough"); // closes those that are there
  await running.finished;
  const told = running.errors.all.map(([why, { port }]) => `${why} ${port}`);
  const left = [2, 4].map((i) => `enough ${ones[i]!.localAddr.port}`);
  assertEquals(told.slice(1).toSorted(), left.toSorted());
  for (const one of ones) one[Symbol.dispose]();
});

it("serve: a handler that awaits something else goes on, and counts", async () => {
  const go = Promise.withResolvers<void>();
  const handler = () => go.promise.then(() => fail("late"));
  const running = start({ timeout: 20, maxClients: 1, handler });
  using first = await dial(running);
  assertEquals(await receiveAll(first), ""); // Its time is up.
  using _second = await dial(running);
  const down = running.shutdown();
  assertEquals(await soon(down), "waits");
  assertEquals(running.accepted.all.length, 1);
  go.resolve();
  await down;
  assertEquals(running.errors.all, [["late", first.localAddr]]);
});

it("serve, connect: what comes in a standstill is whole", async () => {
  const text = "x".repeat(20_000);
  const replies: string[] = [];
  await using running = start({
    timeout: 600,
    handler: async (one) => void replies.push(await greet(one, GREETING)),
  });
  using listener = listen();
  const { port } = listener.addr;
  const given = connect({ port, timeout: 600, handler: receiveAll });
  const peers = await Promise.all(Array.from({ length: 20 }, async () => {
    const one = await dial(running);
    assertEquals(await receiveAll(one), GREETING);
    return one;
  }));
  peers.push(await listener.accept());
  for (const one of peers) sendAll(one, text).then(() => one.close());
  standStill(900);
  while (replies.length + running.errors.all.length < 20) await turn();
  assertEquals([...replies, await given], Array(21).fill(text));
});

it("serve: a shutdown accepts no more, lets the handlers finish, leaves nothing", async () => {
  const { signal } = new AbortController();
  const replies: string[] = [];
  const running = start({
    signal,
    handler: async (one) => void replies.push(await greet(one, GREETING)),
  });
  const ones = [await dial(running), await dial(running)];
  for (const one of ones) assertEquals(await receiveAll(one), GREETING);
  assertEquals(listenersOn(signal), 1);
  const down = running.shutdown();
  await assertRejects(() => exchange(running), Error);
  for (const one of ones) {
    assertEquals(await soon(down), "waits");
    await sendAndEnd(one, REPLY);
    one.close();
  }
  await Promise.all([down, running.finished, running.shutdown()]);
  assertEquals([replies, listenersOn(signal)], [[REPLY, REPLY], 0]);
  await start({ port: running.addr.port }).shutdown(); // The port is free again.
});

it("serve: an abort closes all, also one accepted in the very turn", async () => {
  using real = listen();
  for (let steps = 0; steps < 10; steps++) {
    const controller = new AbortController();
    const { signal } = controller;
    const accepting = Promise.withResolvers<Deno.TcpConn>();
    const options = { signal, timeout: Infinity, handler: receiveOne };
    const running = startWith([accepting.promise], options);
    using connection = await dial(real);
    accepting.resolve(await real.accept());
    for (let i = 0; i < steps; i++) await null;
    if (steps > 7) await running.accepted.next(); // into the handler
    const reason = steps % 2 === 0 ? new Error("enough") : null;
    controller.abort(reason);
    await running.finished;
    assertEquals(await receiveAll(connection), "");
    const told = running.accepted.all.map((address) => [reason, address]);
    assertEquals<unknown>(running.errors.all, told);
  }
});

test("serve: after an abort no handler is called", async () => {
  for (const place of [1, 32]) { // in its handler, or before that
    const controller = new AbortController();
    const { signal } = controller;
    let [served, closed] = [0, 0];
    const write = () => turn().then(() => (controller.abort(), 0));
    const one = fake({ write, close: () => closed++ });
    const handler = () => ++served === place && controller.abort();
    await startWith(Array(40).fill(one), { signal, handler }).finished;
    assertEquals([served, closed], place === 1 ? [1, 0] : [31, 1]);
  }
});

it("serve: an onError is called after the close, and stops nothing", async () => {
  using stderr = capture("error");
  const onErrors: ((thrown: Deno.TcpConn) => unknown)[] = [
    (thrown) => thrown.close(), // throws, as it is closed
    () => Promise.reject(new Error("it rejected \x1b")),
    () => new Promise(() => {}), // waited for by nobody
    () => running.shutdown(),
  ];
  const onError = (thrown: unknown) =>
    onErrors.shift()!(thrown as Deno.TcpConn);
  const handler = (one: Deno.TcpConn) => turn().then(() => fail(one));
  const running = start({ maxClients: 1, handler, onError });
  while (onErrors.length > 0) {
    using connection = await dial(running);
    await receiveAll(connection);
  }
  await running.finished;
  assertMatch(stderr.all[0]!, /^BadResource: [^\n]*\n {4}at /);
  assertMatch(stderr.all[1]!, /^Error: it rejected \\u001b\n {4}at /);
  assertEquals(stderr.all.length, 2);
});

it("serve: without an onError, an error is shown after the address", async () => {
  const gone = Object.assign(new Error("\x1b\nme"), { code: "ECONNRESET" });
  const mine = Object.assign(new TypeError("my \x1b"), { code: 7 });
  const cases: [unknown, string][] = [
    [gone, "Error: \\u001b\\nme"],
    [new DOMException("up", "TimeoutError"), "TimeoutError: up"],
    [new InvalidData("too long"), "InvalidData: too long"],
    [new UnexpectedEof("no end"), "UnexpectedEof: no end"],
    ["a\ttext", "a\\ttext"],
    [null, "null"],
    [mine, "TypeError: my \\u001b\n    at "],
  ];
  using stderr = capture("error");
  for (const [error, shown] of cases) {
    const handler = () => Promise.reject(error);
    await using running = start({ onError: undefined, handler });
    using connection = await dial(running);
    const said = await stderr.next();
    const all = `127.0.0.1:${connection.localAddr.port} ${shown}`;
    // Only what no peer can cause comes with its stack.
    assert(said === all || error === mine && said.startsWith(all), said);
  }
});

it("serve: clients that reset before they are accepted harm nobody", async () => {
  await using running = start({ maxClients: 1, handler: receiveOne });
  const first = await dial(running);
  await running.accepted.next();
  for (let i = 0; i < 20; i++) await (await resetter(running)).reset();
  using last = await dial(running);
  await sendAll(last, "x");
  first.close();
  assertEquals(await receiveAll(last), "");
  assertEquals(await running.accepted.next(), last.localAddr);
  assertEquals(running.errors.all, []);
});

test("serve: at a shortage it pauses, and says so once a minute, at no other error", async () => {
  const aborted = Object.assign(new Error("gone"), { code: "ECONNABORTED" });
  const gone = Array(1000).fill(new NotConnected("gone"));
  const others = [...gone, aborted, "no error object"].map((one) => () =>
    fail(one)
  );
  for (const code of ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]) {
    using clock = fakeClock();
    using timer = timers();
    using stderr = capture("error");
    const lacks = [0, 59_999, 1].map((milliseconds) => () => {
      clock.add(milliseconds);
      fail(Object.assign(new Error(`${milliseconds}`), { code }));
    });
    await using running = startWith([...others, ...lacks, fake()]);
    await running.accepted.next();
    assertEquals([timer.delays, running.errors.all], [[100, 100, 100], []]);
    const said = "error: no client can be accepted for now, still trying";
    assertEquals(stderr.all, [`${said}: 0`, `${said}: 1`]);
  }
});

test("serve: each 32nd client is written nothing to before it is served", async () => {
  const writable = Promise.withResolvers<number>();
  const events: unknown[] = [];
  const numbers = Array.from({ length: 64 }, (_, i) => i + 1);
  const fakes = numbers.map((number) => {
    const write = ({ length }: Uint8Array) =>
      events.push(`${length} bytes to ${number}`) && writable.promise;
    return fake({ write, number });
  });
  const handler = (one: object) => void events.push(Object(one).number);
  await using _running = startWith(fakes, { handler });
  await turn();
  const before = [...numbers.slice(0, 31), "0 bytes to 32"];
  assertEquals(events, before); // and until then, no other is accepted
  writable.reject(new BrokenPipe("gone")); // which is for the handler to meet
  await turn();
  const after = [...numbers.slice(31, 63), "0 bytes to 64", 64];
  assertEquals(events, [...before, ...after]);
});

it("serve: what the fakes do, real sockets do", async () => {
  const listener = listen();
  const { port } = listener.addr;
  assertThrows(() => Deno.listen({ hostname: "127.0.0.1", port }), AddrInUse);
  const accepting = listener.accept();
  for (let i = 0; i < 2; i++) listener[Symbol.dispose]();
  await assertRejects(() => accepting, BadResource);
  await assertRejects(() => listener.accept(), BadResource);
  using pair = await connected();
  const { here } = pair;
  here.setNoDelay();
  assertEquals(await here.write(new Uint8Array(0)), 0);
  const part = await here.write(encode(MORE_THAN_BUFFERS));
  assert(part > 0 && part < MORE_THAN_BUFFERS.length, `${part} bytes`);
  const reading = receiveOne(here);
  for (let i = 0; i < 2; i++) here[Symbol.dispose]();
  await assertRejects(() => reading, Interrupted);
  await assertRejects(() => here.write(new Uint8Array(0)), BadResource);
  assertThrows(() => here.close(), BadResource);
  assertThrows(() => here.setNoDelay(), BadResource);
  const signal = AbortSignal.abort("why");
  assertEquals(await errorOf(Deno.connect({ port, signal })), "why");
  await assertRejects(() => Deno.connect({ port: 65_536 }), RangeError);
});

test("serve, connect: an option that is left out has its default", async () => {
  using clock = fakeClock();
  const fakes = Array(2000).fill(fake());
  using _connect = onConnect(hang);
  using _listen = onListen(({ hostname, port, tcpBacklog }) => {
    assertEquals([hostname, port], ["127.0.0.1", 8888]);
    assert(tcpBacklog! > 511, "Deno's default overflows in a burst");
    return listenerOf(fakes);
  });
  // By its signal, it gives its place back.
  const handler = (_: Deno.TcpConn, { signal }: Session) =>
    new Promise((resolve) => signal.onabort = resolve);
  const errors: unknown[] = [];
  const running = serve({ handler, onError: (error) => errors.push(error) });
  const given = errorOf(connect({ handler }));
  await turn();
  clock.add(9_999);
  await pause(200);
  assertEquals([fakes.length, errors, await soon(given)], [976, [], "waits"]);
  clock.add(1);
  assertEquals(nameOf(await given), "TimeoutError");
  while (fakes.length > 0) await turn();
  running.shutdown();
  clock.add(10_000);
  await running.finished;
  assertEquals(errors.map(nameOf), Array(2000).fill("TimeoutError"));
});

it("serve, connect: two writes in a row go at once, and the close comes last", async () => {
  const sendTwo = async (connection: Deno.TcpConn, line: string) => {
    for (const text of [line, "\n"]) await sendAll(connection, text);
  };
  await using running = start({
    handler: async (connection, session) => {
      for await (const line of new Reader(connection)) {
        await sendTwo(connection, `${line}!`);
        if (line === "19") break;
        session.renew();
      }
    },
  });
  const handler = async (connection: Deno.TcpConn) => {
    const reader = new Reader(connection);
    const began = performance.now();
    for (let i = 0; i < 20; i++) {
      await sendTwo(connection, `${i}`);
      assertEquals(await reader.readLine(), `${i}!`);
    }
    assertEquals(await reader.readLine(), null);
    return performance.now() - began;
  };
  const took = await connect({ port: running.addr.port, handler });
  assert(took < 400, `${took} ms`); // with Nagle's algorithm, some 40 for each
});

test("serve, connect: noDelay is set once, but for false, and not by the commands", async () => {
  let calls = 0;
  const setNoDelay = (value = true) => calls += value ? 1 : 100;
  const one = fake({ setNoDelay, ...reads("hi") });
  using _connect = onConnect(() => Promise.resolve(one));
  using _listen = onListen(() => listenerOf([one]));
  for (const noDelay of [undefined, true, false]) {
    calls = 0;
    await using running = startWith([one], { noDelay });
    await running.accepted.next();
    assertEquals(calls, noDelay === false ? 0 : 1);
    await connect({ handler, noDelay });
    assertEquals(calls, noDelay === false ? 0 : 2);
  }
  await run(server.main, "--once").end;
  await run(client.main).end;
  assertEquals(calls, 0);
});

test("serve, connect: what is wrong is refused before any connection", async () => {
  using _listen = onListen(() => fail(new Error("it listened")));
  using _connect = onConnect(() => fail(new Error("it connected")));
  const serves = (own: object) => Promise.try(serve, { handler, ...own });
  const connects = (own: object) => connect({ handler, ...own });
  for (const act of [serves, connects]) {
    for (const timeout of WRONG_TIMES) {
      await assertRejects(() => act({ timeout }), RangeError, "timeout");
    }
    const signal = AbortSignal.abort(new Error("too late"));
    await assertRejects(() => act({ signal }), Error, "too late");
  }
  for (const maxClients of [0, 0.5, NaN]) {
    await assertRejects(() => serves({ maxClients }), RangeError, "maxClients");
    const act = () => connects({ wait: maxClients - 1 });
    await assertRejects(act, RangeError, "wait");
  }
});

it("connect: each try has its whole time, pauses take none, and one serves", async () => {
  await using running = start({ handler: (one) => greet(one, GREETING) });
  const { port } = running.addr;
  const { signal } = new AbortController();
  const times: number[] = [];
  const late: Act = (options) => {
    const began = performance.now();
    return hang(options).finally(() => times.push(performance.now() - began));
  };
  const acts = [refuse, refuse, refuse, late, late, Deno.connect as Act];
  using _ = onConnect((options) => acts.shift()!(options));
  let kept: Deno.TcpConn;
  const handler = (connection: Deno.TcpConn) => {
    kept = connection;
    assertEquals(listenersOn(signal), 1);
    return reply(connection, () => REPLY);
  };
  const options = { port, signal, timeout: 100, wait: 5_000, handler };
  assertEquals([await connect(options), listenersOn(signal)], [GREETING, 0]);
  assertThrows(() => kept.close(), BadResource);
  assert(times.length === 2 && Math.min(...times) >= 145, `${times}`);
});

test("connect: whatever keeps it from connecting is tried again, until the wait is over", async () => {
  let closed = 0;
  const { localAddr } = fake();
  const itself = fake({ remoteAddr: { ...localAddr }, close: () => closed++ });
  const lookup = new Error("failed to lookup address information");
  const passing: unknown[] = [lookup, new NetworkUnreachable(""), null, itself];
  const final = [NotCapable, TypeError, RangeError, URIError];
  for (const act of [...passing, ...final.map((type) => new type(""))]) {
    for (const wait of [undefined, 0, 120]) {
      const times: number[] = [];
      using _ = onConnect(({ hostname, port }) => {
        assertEquals([hostname, port], ["127.0.0.1", 8888]);
        times.push(performance.now());
        return act === itself ? Promise.resolve(act) : Promise.reject(act);
      });
      const error = await errorOf(connect({ wait, handler }));
      if (act !== itself) assert(error === act, `${error} is not ${act}`);
      else assert(error instanceof ConnectionRefused);
      const isRetried = wait === 120 && passing.includes(act);
      const took = times.at(-1)! - times[0]!;
      assert(isRetried ? took >= 119 && took < 450 : took === 0, `${took} ms`);
      assert(times.length <= 4, "50 ms between two tries, at least");
    }
  }
  assert(closed > 3, "a connection to itself is closed");
});

onLinux("connect: a real connection to itself has one address", async () => {
  const port = freePort();
  const address = { host: "127.0.0.1", localAddress: "127.0.0.1" };
  const socket = connectNode({ ...address, port, localPort: port });
  await once(socket, "connect");
  assertEquals([socket.localPort, socket.remotePort], [port, port]);
  await once(socket.destroy(), "close");
});

it("connect: an abort ends it with its reason, and closes", async () => {
  await using running = start({ handler: receiveOne });
  for (let steps = 0; steps < 30; steps++) {
    using connection = await dial(running);
    const made = () => Promise.resolve(connection);
    using _ = onConnect([hang, refuse, made][steps % 3]!);
    const controller = new AbortController();
    const { signal } = controller;
    const handler = (one: Deno.TcpConn) =>
      signal.aborted ? fail(new Error("late")) : receiveOne(one);
    const given = errorOf(connect({ signal, wait: 60_000, handler }));
    for (let i = 0; i < (steps - 2) / 3; i++) await null; // into it, or into the pause
    const reason = steps % 2 === 0 ? new Error("enough") : null;
    controller.abort(reason);
    assert(await (steps % 3 < 2 ? soon(given) : given) === reason);
    assertEquals(listenersOn(signal), 0);
    if (steps % 3 === 2) assertThrows(() => connection.close(), BadResource);
  }
});

test("onStopSignal: it calls back once, and a later signal is the system's", async () => {
  for (const name of STOP_SIGNALS) {
    using signals = stopSignals();
    let calls = 0;
    using _ = onStopSignal(() => calls++);
    assertEquals(signals.names(), STOP_SIGNALS);
    const began = performance.now();
    for (const one of [name, ...STOP_SIGNALS]) signals.send(one); // the same one
    assertEquals([calls, signals.names()], [1, STOP_SIGNALS]);
    while (signals.names().length > 0) await turn();
    const took = performance.now() - began;
    assert(took >= 95 && took < 300, `${took} ms`);
  }
});

test("onStopSignal: disposing of it stops listening, and leaves nothing", () => {
  for (const event of ["none", "before", "within"]) {
    using signals = stopSignals();
    const listening = onStopSignal(() => {
      if (event === "within") listening[Symbol.dispose]();
    });
    if (event !== "none") signals.send("SIGINT");
    for (let i = 0; i < 2; i++) listening[Symbol.dispose]();
    assertEquals(signals.names(), []);
  }
  using _windows = replace(Deno, "build", { ...Deno.build, os: "windows" });
  using signals = stopSignals();
  using _ = onStopSignal(() => {});
  assertEquals(signals.names(), ["SIGINT"]); // There is no SIGTERM to listen for.
});

/** What a client does, what is printed of it, and the code with --once. */
const OUTCOMES: [(one: Deno.TcpConn) => unknown, string, number][] = [
  [(one) => sendAndEnd(one, "1\x1b\n\r\n"), "replied: 1\\u001b\\n", 0],
  [(one) => one.closeWrite(), "left without a reply", 0],
  [(one) => sendAndEnd(one, TOO_LONG), "sent too long a reply", 1],
  [() => {}, "timed out", 1],
];

it("server.ts: it prints what happens, and on a signal it ends", async () => {
  const command = await startServer("--timeout=0.5", "--max-clients=1");
  const rude = await resetter(command);
  const port = rude.localPort; // gone after the reset
  await command.line(`127.0.0.1:${port} connected`);
  rude.write("half a re");
  await rude.reset();
  await command.line(`127.0.0.1:${port} reset the connection`);
  // All at once, and yet served one by one.
  const ones: Deno.TcpConn[] = [];
  for (const _ of OUTCOMES) ones.push(await dial(command));
  const began = performance.now();
  for (const [act, words] of OUTCOMES) {
    using one = ones.shift()!;
    const address = `127.0.0.1:${one.localAddr.port}`;
    await command.line(`${address} connected`);
    if (words === "timed out") {
      command.signal("SIGINT");
      await command.line("Stopping: 1 client to finish");
      command.signal("SIGINT"); // the same: under `deno task`, it comes twice
      await assertRejects(() => exchange(command), Error);
      while (command.signals().length > 0) await turn(); // A later one ends it.
    }
    await Promise.try(act, one).catch(() => {}); // may be too late: too long
    await command.line(`${address} ${words}`);
  }
  assert(performance.now() - began >= 500, "the last had half a second");
  await command.line("Served 5 clients");
  assertEquals([await command.end, command.err.all], [0, []]);
});

test("server.ts: a stop signal before it listens, or after its end, is the system's", async () => {
  using signals = stopSignals();
  using _ = onListen(() => {
    assertEquals(signals.names(), []); // Deno may ask for the permission.
    return listenerOf([]);
  });
  for (const args of [[], ["--once"]]) {
    const command = await startServer(...args);
    assertEquals(signals.names(), STOP_SIGNALS);
    command.signal(STOP_SIGNALS.at(-1)!);
    assertEquals([await command.end, signals.names()], [args.length, []]);
    const lines = ["Stopping: 0 clients to finish", "Served 0 clients"];
    assertEquals(command.out.all.slice(1), lines);
  }
});

it("server.ts: with --once it serves exactly one, whenever a signal comes", async () => {
  for (const [act, words, code] of OUTCOMES) {
    for (let steps = words === "timed out" ? 7 : 0; steps < 8; steps++) {
      const command = await startServer("--once", "--timeout=0.5");
      const ones = await Promise.all([1, 2, 3].map(() => dial(command)));
      for (const one of ones) Promise.try(act, one).catch(() => {});
      while (!(await command.out.next()).endsWith(words));
      for (let i = 0; i < steps; i++) await null;
      if (steps < 7) command.signal("SIGINT");
      assertEquals([await command.end, command.err.all], [code, []]);
      for (const one of ones) one[Symbol.dispose]();
      const lines = command.out.all.map((line) => line.replace(/^127\S+ /, ""))
        .filter((line) => !line.startsWith("Stopping"));
      assertEquals(lines.slice(1), ["connected", words, "Served 1 client"]);
    }
  }
});

it("server.ts: where nobody reads it serves on, and 16 MiB of lines wait", async () => {
  const command = await startServer();
  const reader = stall(command);
  const text = "x".repeat(65_000);
  for (let i = 0; i < 270; i += 2) { // two at once
    const send = () => exchange(command, `${i} ${text}`);
    await Promise.all([send(), send()]);
  }
  reader.resolve();
  command.signal("SIGINT");
  assertEquals([await command.end, command.err.all], [0, []]);
  const all = command.out.all.join("\n");
  const whole = Array.from(all.matchAll(/ replied: (\d+) x{65000}$/gm));
  assert(whole.length > 255 && whole.length < 260, `${whole.length} replies`);
  const numbers = whole.map((match) => Number(match[1]));
  assertEquals(numbers, numbers.toSorted((a, b) => a - b));
  const drops = Array.from(all.matchAll(/^(\d+) lines? dropped$/gm));
  const dropped = drops.reduce((sum, match) => sum + Number(match[1]), 0);
  assertEquals(all.match(/^127/gm)!.length + dropped, 2 * 270);
  assertMatch(all, /connected\n.* connected\n/);
});

test("server.ts: at its end it waits for a reader, 5 seconds at most", async () => {
  for (const [isRead, once] of [[1, 1], [0, 1], [0, 0]]) {
    using timer = timers((delay) => !isRead && delay === 5_000 ? 9 : delay);
    const accepting = Promise.withResolvers<Deno.TcpConn>();
    using _listen = onListen(() => listenerOf([accepting.promise]));
    const command = await startServer(...once ? ["--once"] : []);
    const reader = stall(command);
    accepting.resolve(fake(reads("hi")));
    if (!once) command.signal("SIGINT");
    while (!timer.delays.includes(5_000)) await turn();
    if (isRead) {
      command.signal("SIGINT"); // changes nothing any more
      assertEquals(await soon(command.end), "waits");
      reader.resolve();
    }
    assertEquals(await command.end, isRead ? 0 : once);
    const said = ["error: cannot print: nobody reads the lines"];
    assertEquals(command.err.all, isRead ? [] : said);
    assertEquals(command.out.all.length, isRead ? 4 : 1);
  }
});

it("server.ts: lines that can't be written are said once, and it goes on", async () => {
  const said = ["error: cannot print: no space left"];
  const fails = () => Promise.reject(new Error("no space left"));
  for (const args of [[], ["--once"]]) {
    const command = await startServer(...args);
    command.write = fails;
    assertEquals(await exchange(command), GREETING);
    if (args.length === 0) {
      command.write = (bytes) => Promise.resolve(bytes.length);
      command.signal("SIGINT");
    }
    assertEquals([await command.end, command.err.all], [args.length, said]);
    const last = args.length === 0 ? "Served 1 client" : "Listening";
    assert(command.out.all.at(-1)!.startsWith(last));
  }
  const help = Object.assign(run(server.main, "--help"), { write: fails });
  assertEquals([await help.end, help.err.all], [1, said]);
});

it("client.ts: it waits for a server, and prints each line as it happens", async () => {
  const port = freePort();
  const flags = ["-p", `${port}`, "--wait=9", "--reply", "one\x1b\ntwo\n"];
  const command = run(client.main, ...flags);
  await pause(250); // in which it is refused
  using listener = Deno.listen({ hostname: "127.0.0.1", port });
  using connection = await listener.accept();
  await command.line(`Connected to 127.0.0.1:${port}`);
  await sendAll(connection, "good\t");
  await turn();
  await sendAndEnd(connection, "day\r\n");
  await command.line("Greeting: good\\tday");
  await command.line("Replied: one\\u001b\\ntwo");
  assertEquals(await receiveAll(connection), "one\x1b\ntwo\n");
  assertEquals([await command.end, command.err.all], [0, []]);
});

it("client.ts: what goes wrong is one line, after its own", async () => {
  const long = (one: Deno.TcpConn) => sendAll(one, TOO_LONG);
  const learner = (one: Deno.TcpConn) =>
    // It does not end its greeting.
    sendAll(one, "hello\x1b\n").then(() => receiveOne(one));
  const cases: [(one: Deno.TcpConn) => unknown, RegExp][] = [
    [receiveOne, /^error: S took too long; give it more time with --timeout S/],
    [learner, /greeting of S has not ended.* half-close.*: hello\\u001b$/],
    [handler, /^error: S closed without a greeting$/],
    [long, /^error: S sent a greeting longer than 65536 bytes$/],
  ];
  for (const [handler, words] of cases) {
    await using running = start({ handler });
    const address = `127.0.0.1:${running.addr.port}`;
    const flags = ["--port", `${running.addr.port}`, "--timeout", "0.5"];
    const began = performance.now();
    const command = run(client.main, ...flags);
    assertEquals(await command.end, 1);
    assert(handler !== receiveOne || performance.now() - began >= 500);
    assertEquals(command.out.all, [`Connected to ${address}`]);
    assertMatch(command.err.all.join("\n").replace(address, "S"), words);
  }
});

it("client.ts: lines that can't be printed are an error, after the exchange", async () => {
  for (const args of [[], ["--quiet"], ["--help"]]) {
    await using running = start({ handler: (one) => greet(one, GREETING) });
    using _ = replace(console, "log", () => fail(new Error("no space left")));
    using stderr = capture("error");
    const code = await client.main(["-p", `${running.addr.port}`, ...args]);
    const said = "error: cannot print: no space left";
    assertEquals([code, stderr.all], [1, [said]]);
  }
});

test("both: an error of the system is the peer's, any other is shown", async () => {
  const route = Object.assign(new Error("no route"), { code: "EHOSTUNREACH" });
  for (const error of [route, new Error("mine")]) {
    const fails = () => Promise.reject(error);
    const broken = fake({ closeWrite: fails, read: fails });
    using _listen = onListen(() => listenerOf([broken]));
    using _connect = onConnect(() => Promise.resolve(broken));
    const command = await startServer("--once");
    await command.line("127.0.0.1:7 connected");
    const words = error === route ? "reset the connection" : "failed";
    await command.line(`127.0.0.1:7 ${words}`);
    assertEquals(await command.end, 1);
    const shown = error === route ? /^$/ : /^Error: mine\n {4}at /;
    assertMatch(command.err.all.join("\n"), shown);
    const other = run(client.main);
    assertEquals(await other.end, 1);
    assertEquals(other.err.all, ["error: 127.0.0.1:8888 reset the connection"]);
  }
});

it("both: they talk to each other, with --quiet in fewer lines", async () => {
  const command = await startServer("--once", "--greeting=hello", "--quiet");
  using lines = capture("log");
  command.write = (bytes) => Promise.resolve(Math.min(bytes.length, 7));
  const port = `--port=${command.addr.port}`;
  assertEquals(await client.main([port, "--reply=hi", "-q"]), 0);
  assertEquals([await command.end, lines.all], [0, ["hello"]]);
  assertEquals(command.out.all.slice(1), ["Served 1 client"]);
});

test("both: flags reach Deno, and where that fails a line says what to do", async () => {
  const cases: [typeof server.main, Error, string][] = [
    [server.main, new AddrInUse(), "[::1]:65535 is in use; "],
    [server.main, new PermissionDenied(), "listening on [::1]:65535; choose"],
    [server.main, new AddrNotAvailable(), "[::1]:65535 is not an address of "],
    [server.main, new NotCapable(), "on [::1]:65535; run with --allow-net="],
    [server.main, new Error("no"), "cannot listen on [::1]:65535: no"],
    [client.main, new ConnectionRefused(), "nothing listens on [::1]:65535; "],
    [client.main, new DOMException(), "[::1]:65535 took too long; "],
    [client.main, new NotCapable(), "to [::1]:65535; run with --allow-net="],
    [client.main, new Error("no"), "cannot reach [::1]:65535: no"],
  ];
  for (const [main, error, words] of cases) {
    const act = ({ hostname, port }: Options) => {
      assertEquals([hostname, port], ["::1", 65_535]);
      throw error;
    };
    using _listen = onListen(act);
    using _connect = onConnect(act);
    const host = error instanceof NotCapable ? "[::1]" : "::1";
    // Of a repeated flag the last one counts.
    const flags = [`--host=${host}`, "--port", "1", "-p", "065535"];
    const command = run(main, ...flags);
    assertEquals([await command.end, command.out.all], [1, []]);
    const [said, ...more] = command.err.all;
    assert(said?.startsWith("error: ") && said.includes(words), said);
    assertEquals(more, []);
  }
});

test("both: a wrong command line is one line that names it, and 2", async () => {
  using _listen = onListen(() => fail(new Error("it listened")));
  using _connect = onConnect(() => fail(new Error("it connected")));
  const cases: [typeof server.main, string, string][] = [
    [server.main, "--nosuch", '"--nosuch"'],
    [server.main, "-- behind", '"behind"'],
    [client.main, "--reply --quiet", "--reply needs a value"],
    [client.main, "--quiet=no", "--quiet takes no value"],
    [server.main, "--once=1", "--once takes no value"],
    [server.main, "-q=no", "-q takes no value"],
    [client.main, "-h=x", "-h takes no value"],
    [client.main, "-qh=x", "takes no value"],
    [server.main, "--port 65536", '0 to 65535, not "65536"'],
    [server.main, "--port 80.5", 'whole number from 0 to 65535, not "80.5"'],
    [server.main, "--timeout 0", '0.001 to 2147483, not "0"'],
    [server.main, "--timeout 1e3", '"1e3"'],
    [server.main, "--max-clients 0", "--max-clients must be a whole number"],
    [client.main, "--port 0", '1 to 65535, not "0"'],
    [client.main, "--timeout 2147484", '0.001 to 2147483, not "2147484"'],
    [client.main, "--wait=-1", "--wait must be a number from 0 to 2147483"],
  ];
  for (const [main, line, part] of cases) {
    const command = run(main, ...line.split(" "));
    assertEquals([await command.end, command.out.all], [2, []]);
    const said = command.err.all.join("\n");
    assert(said.includes(part), `${line}: ${said}`);
    assertMatch(said, /^error: .*; see --help$/);
  }
  using _ = replace(console, "error", () => fail(new Error("closed")));
  assertEquals(await client.main(["--nosuch"]), 2); // also where it can't be said
});

test("both: --help shows every flag with its default", async () => {
  const shared = { host: "127.0.0.1", port: 8888, timeout: 10, quiet: "off" };
  const own = { greeting: GREETING, "max-clients": 1024, once: "off" };
  const cases: [typeof server.main, object][] = [
    [server.main, { ...shared, ...own }],
    [client.main, { ...shared, reply: REPLY, wait: 0 }],
  ];
  for (const [main, flags] of cases) {
    for (const flag of ["--help", "-h", "-qh"]) {
      const command = run(main, flag);
      assertEquals([await command.end, command.err.all], [0, []]);
      const help = command.out.all.join("\n");
      for (const [name, value] of Object.entries(flags)) {
        assertMatch(help, RegExp(`--${name}\\b.*\\(${value}\\)`));
      }
    }
  }
});

// What the tests share

/** A test without sockets. It is stopped where it would hang. */
function test(name: string, fn: () => void | Promise<void>): void {
  Deno.test({ name, fn, timeout: 10_000 });
}

/** A test with sockets, on the loopback and free ports only. */
function it(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, fn, timeout: 10_000, ignore: state !== "granted" });
}

/** A test of what holds on both sides, with sockets. */
function onBoth(name: string, fn: (side: typeof inServe) => Promise<void>) {
  it(name, () => fn(inServe).then(() => fn(inConnect)));
}

/** A source that gives these, one a read as far as they fit, and the end. */
function reads(...pieces: (string | Uint8Array)[]) {
  const left = pieces.map((one) => typeof one === "string" ? encode(one) : one);
  let isEnded = false;
  const read = (buffer: Uint8Array): Promise<number | null> => {
    const bytes = left.shift();
    assert(!isEnded, "it read after the end");
    isEnded = bytes === undefined;
    if (bytes === undefined) return Promise.resolve(null);
    const taken = bytes.subarray(0, buffer.length);
    buffer.set(taken);
    if (taken.length < bytes.length) left.unshift(bytes.subarray(taken.length));
    return Promise.resolve(taken.length);
  };
  return { read };
}

/** Sources of the text: byte by byte, and in two reads, cut at each place. */
function ways(text: string) {
  const bytes = encode(text);
  const single = Array.from(bytes, (byte) => Uint8Array.of(byte));
  const cuts = single.map((_, i) => [bytes.slice(0, i), bytes.slice(i)]);
  return [single, ...cuts].map((pieces) => reads(...pieces));
}

/** Replaces a property until the end of the block. */
function replace<T extends object>(object: T, name: keyof T, value: unknown) {
  const original = object[name];
  object[name] = value as never;
  return { [Symbol.dispose]: () => void (object[name] = original) };
}

type Options = Partial<Deno.TcpListenOptions & Deno.ConnectOptions>;
type Act = (options: Options) => unknown;
const onListen = (act: Act) => replace(Deno, "listen", act);
const onConnect = (act: Act) => replace(Deno, "connect", act);

/** What happened, in order, to be waited for one by one. */
class Events<T> {
  readonly all: T[] = [];
  #taken = 0;
  #arrived = Promise.withResolvers<void>();

  readonly push = (event: T): void => {
    this.all.push(event);
    this.#arrived.resolve();
    this.#arrived = Promise.withResolvers();
  };

  async next(): Promise<T> {
    while (this.#taken === this.all.length) await this.#arrived.promise;
    return this.all[this.#taken++]!;
  }
}

/** What is printed with `console`, until the end of the block. */
function capture(name: "log" | "error") {
  const texts = new Events<string>();
  return Object.assign(texts, replace(console, name, texts.push));
}

/** The delays of the timers that are set until the end of the block. */
function timers(change = (delay: number) => delay) {
  const delays: number[] = [];
  const set = globalThis.setTimeout;
  const note = (fn: () => void, delay = 0) => {
    delays.push(delay);
    return set(fn, change(delay));
  };
  return { delays, ...replace(globalThis, "setTimeout", note) };
}

/** A clock that stands still until the end of the block, but for what is added. */
function fakeClock() {
  let time = Math.round(performance.now()); // so that sums are exact
  const replaced = replace(performance, "now", () => time);
  return { add: (milliseconds: number) => time += milliseconds, ...replaced };
}

/** A server on a free port, with the addresses and the errors of its clients. */
function start(options: Partial<ServeOptions> = {}) {
  const errors = new Events<[unknown, Deno.NetAddr]>();
  const accepted = new Events<Deno.NetAddr>();
  const running = serve({
    port: 0,
    onError: (error, client) => errors.push([error, client]),
    ...options,
    handler: (connection, session) => {
      accepted.push(connection.remoteAddr);
      return options.handler?.(connection, session);
    },
  });
  return Object.assign(running, { errors, accepted });
}

type Accept = Deno.TcpConn | Promise<Deno.TcpConn> | (() => never);

/** The same on a listener that gives these, one by one, and takes them away. */
function startWith(accepts: Accept[], options: Partial<ServeOptions> = {}) {
  using _ = onListen(() => listenerOf(accepts));
  return start(options);
}

function listenerOf(accepts: Accept[]) {
  const closed = Promise.withResolvers<never>();
  closed.promise.catch(() => {}); // only a pending accept meets it
  return {
    addr: { transport: "tcp", hostname: "127.0.0.1", port: 7 },
    accept: async () => {
      const next = accepts.shift() ?? closed.promise;
      return await (typeof next === "function" ? next() : next);
    },
    [Symbol.dispose]: () => closed.reject(new BadResource("closed")),
  };
}

/** A connection that takes what is written, but for what is given here. */
function fake(fields: object = {}): Deno.TcpConn {
  const address = { transport: "tcp", hostname: "127.0.0.1" };
  return {
    localAddr: { ...address, port: 8888 },
    remoteAddr: { ...address, port: 7 },
    write: (data: Uint8Array) => Promise.resolve(data.length),
    closeWrite: () => Promise.resolve(),
    setNoDelay: () => {},
    [Symbol.dispose]: () => {},
    ...fields,
  } as unknown as Deno.TcpConn;
}

type Handler = ServeOptions["handler"];

/** Runs the handler with a silent peer, and gives the errors that are told. */
async function inServe(given: ServeOptions): Promise<unknown[]> {
  await using running = start(given);
  using _peer = await dial(running);
  await running.accepted.next();
  await running.shutdown();
  return running.errors.all.map(([error]) => error);
}

/** The same with `connect`. */
async function inConnect(given: ServeOptions): Promise<unknown[]> {
  using silent = listen();
  const options = { ...given, port: silent.addr.port, wait: 5_000 };
  return await connect(options).then(() => [], (error) => [error]);
}

/** Both ends of a connection. */
async function connected() {
  using listener = listen();
  const [here, there] = await Promise.all([dial(listener), listener.accept()]);
  const ends = new DisposableStack();
  for (const end of [here, there]) ends.use(end);
  return Object.assign(ends, { here, there });
}

/** A client that can reset its connection. */
async function resetter({ addr: { port } }: { addr: Deno.NetAddr }) {
  const socket = connectNode({ port, host: "127.0.0.1" });
  socket.on("error", () => {}); // what a reset may bring is not the test's business
  await once(socket, "connect");
  const reset = () => once(socket.resetAndDestroy(), "close");
  return Object.assign(socket, { reset });
}

/** Keeps the process busy, as if it stood still. */
function standStill(milliseconds: number): void {
  const end = Date.now() + milliseconds;
  while (Date.now() < end);
}

/** A connect that hangs until it is aborted. */
function hang({ signal }: Options): Promise<never> {
  return new Promise((_, reject) => {
    signal!.addEventListener("abort", () => reject(signal!.reason));
  });
}

/** Gives the greeting. */
function exchange({ addr }: { addr: Deno.NetAddr }, text = REPLY) {
  const { port } = addr;
  return connect({ port, handler: (one) => reply(one, () => text) });
}

function freePort(): number {
  using listener = listen();
  return listener.addr.port;
}

function fail(error: unknown): never {
  throw error;
}

const handler = () => {}; // one that does nothing
const receiveAll = (source: Pick<Deno.Conn, "read">) =>
  new Reader(source, Infinity).readAll();
const receiveOne = (one: Deno.TcpConn) => one.read(new Uint8Array(1));
const listen = () => Deno.listen({ hostname: "127.0.0.1", port: 0 });
const dial = ({ addr: { port } }: { addr: Deno.NetAddr }) =>
  Deno.connect({ port });
const refuse = () => Promise.reject(new ConnectionRefused("no"));
const pause = (milliseconds: number) =>
  new Promise<void>((resolve) => setTimeout(resolve, milliseconds));
const turn = () => pause(0); // of the event loop
/** What the promise gives within a turn, or that it waits. */
const soon = (promise: Promise<unknown>) =>
  turn().then(() => Promise.race([promise, "waits"]));
const encode = (text: string) => new TextEncoder().encode(text);
const sendAndEnd = (one: Deno.TcpConn, text: string) =>
  sendAll(one, text).then(() => one.closeWrite());
const nameOf = (error: unknown) => (error as Error).name;
const errorOf = (promise: Promise<unknown>) =>
  promise.then(() => fail(new Error("no error")), (error) => error);
const listenersOn = (signal: AbortSignal) =>
  getEventListeners(signal, "abort").length;

/** The stop signals that are listened for, until the end of the block. */
function stopSignals() {
  const listeners = new Map<string, () => void>();
  const replaced = new DisposableStack();
  for (const name of ["addSignalListener", "removeSignalListener"] as const) {
    const original = Deno[name];
    const act = (signal: Deno.Signal, listener: () => void) => {
      original(signal, listener); // so that one that is left behind is noticed
      if (name === "addSignalListener") listeners.set(signal, listener);
      else listeners.delete(signal);
    };
    replaced.use(replace(Deno, name, act));
  }
  const send = (signal: string) => listeners.get(signal)?.();
  return Object.assign(replaced, { send, names: () => [...listeners.keys()] });
}

/** A command under way: what it prints, and its stop signals. */
function run(main: (args: string[]) => Promise<number>, ...args: string[]) {
  const out = new Events<string>();
  const err = new Events<string>();
  const signals = stopSignals();
  const decoder = new TextDecoder();
  let rest = ""; // of a line that is written in parts
  const command = {
    out,
    err,
    /** What takes the bytes of stdout, and gives how many it took. */
    write: (bytes: Uint8Array) => Promise.resolve(bytes.length),
    signals: signals.names,
    signal: signals.send,
    /** The next line must be this one. */
    line: async (line: string) => assertEquals(await out.next(), line),
    end: Promise.resolve(0),
  };
  const write = async (bytes: Uint8Array) => {
    await null; // lets a test replace what takes them
    const count = await command.write(bytes);
    rest += decoder.decode(bytes.subarray(0, count), { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop()!;
    lines.forEach(out.push);
    return count;
  };
  const replaced = new DisposableStack();
  replaced.use(signals);
  replaced.use(replace(console, "error", err.push));
  const print = (text: string) => text.split("\n").forEach(out.push);
  replaced.use(replace(console, "log", print));
  replaced.use(replace(Deno, "stdout", { write }));
  command.end = main(args).finally(() => replaced.dispose());
  return command;
}

/** The server's command on a free port, once it listens. */
async function startServer(...args: string[]) {
  const command = run(server.main, "--port", "0", ...args);
  const line = await command.out.next();
  const [, port] = line.match(/^Listening on 127\.0\.0\.1:(\d+)$/)!;
  const addr = { transport: "tcp", hostname: "127.0.0.1", port: Number(port) };
  return Object.assign(command, { addr: addr as Deno.NetAddr });
}

/** Nobody reads its stdout, until the promise is resolved. */
function stall(command: ReturnType<typeof run>) {
  const reader = Promise.withResolvers<void>();
  command.write = (bytes) => reader.promise.then(() => bytes.length);
  return reader;
}
