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
import { greet, printable, readLines, receiveAll } from "./server.ts";
import { sendAll, serve, type ServeOptions } from "./server.ts";

const { AddrInUse, AddrNotAvailable, BadResource, BrokenPipe } = Deno.errors;
const { ConnectionRefused, ConnectionReset, Interrupted } = Deno.errors;
const { InvalidData, NotCapable, NotConnected } = Deno.errors;
const { PermissionDenied, TimedOut, UnexpectedEof } = Deno.errors;

const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const TEXT = "你好,客戶端 👋🏽";
const MORE_THAN_BUFFERS = "x".repeat(20_000_000);
const TOO_LONG = "x".repeat(65_537);
const { state } = await Deno.permissions.query({ name: "net" });
// For what other systems do in another way.
const onLinux = Deno.build.os === "linux" ? it : Deno.test.ignore;

// The helpers

test("sendAll: all is sent where a write takes a part", async () => {
  for (const data of [TEXT, encode(TEXT)]) {
    const sent: number[] = [];
    const write = (bytes: Uint8Array) => {
      sent.push(...bytes.subarray(0, 2));
      return Promise.resolve(Math.min(bytes.length, 2));
    };
    await sendAll({ write }, data);
    assertEquals(new Uint8Array(sent), encode(TEXT));
  }
});

test("receiveAll: a text is whole, however it comes", async () => {
  for (const reader of ways(TEXT)) assertEquals(await receiveAll(reader), TEXT);
  // A byte that is no UTF-8 becomes U+FFFD, and U+FEFF stays.
  const bytes = Uint8Array.of(0xef, 0xbb, 0xbf, 0xff, 0x41, 0xe4);
  assertEquals(await receiveAll(reads(bytes)), "\uFEFF\uFFFDA\uFFFD");
});

test("receiveAll, readLines: as much as the limit is taken, and no more", async () => {
  for (const limit of [10, undefined]) {
    const most = "x".repeat(limit ?? 65_536);
    assertEquals(await receiveAll(reads(most), limit), most);
    await assertRejects(() => receiveAll(reads(most, "x"), limit), InvalidData);
    const line = await readLines(reads(most, "\r\n"), limit).next();
    assertEquals(line.value, most);
    const endless = reads(...Array(20).fill(most)); // of one line, without its end
    await assertRejects(() => readLines(endless, limit).next(), InvalidData);
    assert(await endless.read(new Uint8Array(1)) !== null, "it read on");
  }
});

test("readLines: line ends, wherever the reads are cut", async () => {
  const text = `\uFEFFone\n\r\ntwo\r\n${TEXT}\n\na\rb\r\r\nrest\r`;
  const lines = ["\uFEFFone", "", "two", TEXT, "", "a\rb\r", "rest\r"];
  for (const read of [readLines, client.readLines]) {
    for (const reader of ways(text)) {
      assertEquals(await Array.fromAsync(read(reader)), lines);
    }
    assertEquals(await Array.fromAsync(read(reads())), []);
    const half = reads("one\n", Uint8Array.of(0xe4)); // of a character
    assertEquals(await Array.fromAsync(read(half)), ["one", "\uFFFD"]);
  }
});

test("readLines: a line over the limit is an error after those before it, exactly", async () => {
  const cases = {
    "one\r\ntwo\n好好好\n": 3,
    "one\ntwo\r": 1,
    "one\ntwo!": 1,
    "one\ntwo!\nsix\n": 1,
    "one\ntwo\r\r\nsix": 1,
    "one\ntwo\r!\r\n": 1,
  };
  for (const [text, count] of Object.entries(cases)) {
    for (const reader of ways(text)) {
      const lines: string[] = [];
      const all = async () => {
        for await (const line of readLines(reader, 3)) lines.push(line);
      };
      if (count === 3) await all();
      else await assertRejects(all, InvalidData);
      assertEquals(lines, ["one", "two", "好好好"].slice(0, count));
    }
  }
});

test("readLines: the work grows with the bytes, not with their square", async () => {
  let left = 500_000;
  const read = async (buffer: Uint8Array) => {
    if (left % 10_000 === 0) await turn(); // lets the test be stopped
    buffer[0] = 0x78;
    return left-- > 0 ? 1 : null;
  };
  const { value } = await readLines({ read }, Infinity).next();
  assertEquals(value?.length, 500_000);
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

// greet and reply

it("greet: the greeting is whole, and ends its half, not the client's", async () => {
  using pair = await connected();
  const replied = greet(pair.there, MORE_THAN_BUFFERS);
  await turn(); // so late is it read
  assert(await receiveAll(pair.here, Infinity) === MORE_THAN_BUFFERS);
  await sendAll(pair.here, "still ");
  await sendAndEnd(pair.here, "here");
  assertEquals(await replied, "still here");
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
  using one = await connected();
  const replied = greet(one.there, GREETING);
  await one.here.read(new Uint8Array(1024));
  await sendAll(one.here, REPLY);
  one.here.close();
  assertEquals(await replied, REPLY);
  using other = await connected();
  await sendAll(other.there, GREETING);
  other.there.close();
  assertEquals(await reply(other.here, () => REPLY), GREETING);
});

// serve: the handler and its connection

it("serve: the connection is closed when the handler has settled, or by it", async () => {
  for (const isOwn of [false, true]) {
    let kept = () => {};
    await using running = start({
      handler: async (connection, renew) => {
        kept = renew;
        for await (const line of readLines(connection)) {
          await sendAll(connection, `${line}!\n`);
          if (line === "bye") break;
        }
        if (isOwn) connection[Symbol.dispose]();
      },
    });
    using connection = await dial(running);
    const lines = readLines(connection);
    for (const line of ["hello", "bye"]) {
      await sendAll(connection, `${line}\n`);
      assertEquals((await lines.next()).value, `${line}!`);
    }
    assertEquals((await lines.next()).done, true);
    await running.shutdown();
    assertEquals(running.errors.all, []);
    kept(); // a timer that it set would be left behind
  }
});

it("serve: what a handler throws reaches onError as it is, after the close", async () => {
  const given = new Events<[unknown, Deno.NetAddr]>();
  let kept: Deno.TcpConn;
  let act: () => unknown;
  await using running = start({
    handler: (connection) => {
      kept = connection;
      return act();
    },
    onError: (...all) => {
      assertThrows(() => kept.close(), BadResource);
      given.push(all);
    },
  });
  for (const error of [new TypeError("mine"), new TimedOut("its"), "x", null]) {
    const throwLater = () => turn().then(() => fail(error));
    for (act of [() => fail(error), throwLater]) {
      using connection = await dial(running);
      const [reason, address] = await given.next();
      assert(reason === error, `${reason} is not ${error}`);
      assertEquals(address, connection.localAddr);
    }
  }
});

// serve: the time

it("serve: a client that sends or reads nothing is closed when its time is up", async () => {
  const send = (one: Deno.TcpConn) => sendAll(one, MORE_THAN_BUFFERS);
  const acts = [receiveOne, receiveOne, send];
  let next = 0;
  const handler = (connection: Deno.TcpConn) => acts[next++]!(connection);
  await using running = start({ timeout: 50, handler });
  // One by one, so for each but the first no time is running when it comes.
  for (const _ of acts) {
    const began = performance.now();
    using _silent = await dial(running);
    const [error] = await running.errors.next();
    assertEquals(nameOf(error), "TimeoutError");
    assert(performance.now() - began >= 95, "50 ms, and 50 more");
  }
});

it("serve: a handler under way gets no more time, but by renew", async () => {
  for (const isRenewed of [false, true]) {
    using timer = timers();
    let lines = 0;
    await using running = start({
      timeout: 300,
      handler: async (connection, renew) => {
        for (; lines < 10; lines++) {
          await pause(60);
          await sendAll(connection, "more\n");
          if (isRenewed) renew();
        }
      },
    });
    using connection = await dial(running);
    await receiveAll(connection);
    assert(Math.max(...timer.delays) <= 300);
    assert(isRenewed ? lines === 10 : lines < 10, `${lines} lines`);
  }
});

it("serve: each has its own time, whoever came or was renewed before", async () => {
  const renews: (() => void)[] = [];
  await using running = start({
    timeout: 400,
    handler: (connection, renew) => {
      renews.push(renew);
      return receiveOne(connection);
    },
  });
  using first = await dial(running);
  using gone = await dial(running);
  using last = await dial(running);
  for (let i = 0; i < 3; i++) await running.accepted.next();
  gone.close();
  await pause(150);
  renews.forEach((renew, i) => i < 2 && renew());
  for (const one of [last, first]) {
    assertEquals((await running.errors.next())[1], one.localAddr);
  }
});

it("serve: a handler that awaits something else goes on, and counts", async () => {
  for (const isGood of [true, false]) {
    const go = Promise.withResolvers<void>();
    const controller = new AbortController();
    const { signal } = controller;
    const handler = async (connection: Deno.TcpConn, renew: () => void) => {
      if (isGood) connection[Symbol.dispose]();
      await go.promise;
      renew(); // for nothing, where its time was up before
      controller.abort();
      if (!isGood) throw new Error("late");
    };
    const running = start({ timeout: 20, maxClients: 1, signal, handler });
    using first = await dial(running);
    assertEquals(await receiveAll(first), ""); // by itself, or its time is up
    using _second = await dial(running);
    const down = running.shutdown();
    assertEquals(await soon(down), "waits");
    assertEquals(running.accepted.all.length, 1);
    go.resolve();
    await down;
    // What comes of it in the end is told only where it is an error.
    const names = running.errors.all.map(([error]) => nameOf(error));
    assertEquals(names, isGood ? [] : ["TimeoutError"]);
  }
});

it("serve: replies that come in a standstill are whole", async () => {
  const replies: string[] = [];
  await using running = start({
    timeout: 600,
    handler: async (one) => void replies.push(await greet(one, GREETING)),
  });
  const clients = await Promise.all(Array.from({ length: 20 }, async () => {
    const one = await dial(running);
    assertEquals(await receiveAll(one), GREETING);
    return one;
  }));
  for (const one of clients) {
    sendAll(one, "x".repeat(20_000)).then(() => one.close()); // read later
  }
  standStill(900);
  while (replies.length + running.errors.all.length < 20) await turn();
  assertEquals(replies, Array(20).fill("x".repeat(20_000)));
});

// serve: the end, and errors

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
  // The port is free again.
  Deno.listen({ hostname: "127.0.0.1", port: running.addr.port }).close();
});

it("serve: an abort closes all, also one accepted in the very turn", async () => {
  using real = listen();
  for (let steps = 0; steps < 10; steps++) {
    using timer = timers();
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
    assertEquals([running.errors.all, timer.delays], [told, []]);
  }
});

test("serve: after an abort no handler is called", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const written = turn().then(() => 0);
  const fakes = Array(20).fill(fake({ write: () => written }));
  const handler = () => controller.abort();
  const running = startWith(fakes, { signal, handler });
  await running.finished;
  assertEquals(running.accepted.all.length, 1);
});

it("serve: an onError that throws or rejects is shown and stops nothing", async () => {
  using stderr = capture("error");
  const onErrors = [
    () => fail(new Error("it threw \x1b")),
    () => Promise.reject(new Error("it rejected")),
    () => new Promise(() => {}), // waited for by nobody
    () => running.shutdown(),
  ];
  let next = 0;
  const handler = () => fail(new Error("mine"));
  const running = start({ handler, onError: () => onErrors[next++]!() });
  for (const _ of onErrors) {
    using connection = await dial(running);
    await receiveAll(connection);
  }
  await running.finished;
  assertEquals(stderr.all.length, 2);
  assertMatch(stderr.all[0]!, /^Error: it threw \\u001b\n {4}at /);
  assertMatch(stderr.all[1]!, /^Error: it rejected\n/);
});

it("serve: without an onError, an error is shown after the address", async () => {
  const reset = Object.assign(new Error("\x1b\nme"), { code: "ECONNRESET" });
  const mine = Object.assign(new TypeError("my \x1b"), { code: 7 });
  const cases: [unknown, string][] = [
    [reset, "Error: \\u001b\\nme"],
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
    assert(shown.endsWith("at ") ? said.startsWith(all) : said === all, said);
  }
});

// serve: accepting

it("serve: clients that reset before they are accepted harm nobody", async () => {
  await using running = start({ maxClients: 1, handler: receiveOne });
  const first = await dial(running);
  await running.accepted.next();
  for (let i = 0; i < 20; i++) await reset(await resetter(running));
  using last = await dial(running);
  await sendAll(last, "x");
  first.close();
  assertEquals(await receiveAll(last), "");
  assertEquals(await running.accepted.next(), last.localAddr);
  assertEquals(running.errors.all, []);
});

test("serve: an error of accepting concerns one client and costs no time", async () => {
  const gone = Array(1000).fill(new NotConnected("gone"));
  const errors = [...gone, new Error("Invalid argument"), "no error object"];
  using timer = timers();
  using stderr = capture("error");
  const accepts = [...errors.map((one) => () => fail(one)), fake()];
  await using running = startWith(accepts, { timeout: Infinity });
  await running.accepted.next();
  assertEquals([timer.delays, stderr.all, running.errors.all], [[], [], []]);
});

test("serve: at a shortage it says so, waits, and goes on", async () => {
  for (const code of ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]) {
    using stderr = capture("error");
    const began = performance.now();
    const lack = () => fail(Object.assign(new Error(`no ${code}`), { code }));
    await using running = startWith([lack, lack, fake()]);
    await running.accepted.next();
    assert(performance.now() - began >= 195, "100 ms between two tries");
    const said = "error: no client can be accepted for now, still trying";
    assertEquals(stderr.all, [`${said}: no ${code}`]);
  }
});

test("serve: a shortage is told at most once a minute", async () => {
  using clock = fakeClock();
  using stderr = capture("error");
  const lacks = [0, 59_999, 1].map((milliseconds) => () => {
    clock.add(milliseconds);
    throw Object.assign(new Error(`${milliseconds}`), { code: "EMFILE" });
  });
  await using _running = startWith(lacks);
  assertMatch(await stderr.next(), /: 0$/);
  assertMatch(await stderr.next(), /: 1$/);
});

test("serve: no client is accepted while 32 can't be written to yet", async () => {
  const writable = Promise.withResolvers<number>();
  const settled = Promise.withResolvers<void>();
  const writes: Uint8Array[] = [];
  const write = (data: Uint8Array) => {
    writes.push(data);
    return writable.promise;
  };
  const fakes = Array(40).fill(fake({ write }));
  await using running = startWith(fakes, { handler: () => settled.promise });
  await turn();
  assertEquals([running.accepted.all.length, fakes.length], [0, 40 - 32]);
  writable.resolve(0);
  await turn();
  assertEquals([running.accepted.all.length, fakes.length], [40, 0]);
  assertEquals(writes, Array(40).fill(new Uint8Array(0)));
  settled.resolve();
});

test("serve: a client that can't be written to is gone as if it had not come", async () => {
  const controller = new AbortController();
  let closed = 0;
  const gone = fake({
    write: () => Promise.reject(new BrokenPipe("gone")),
    [Symbol.dispose]: () => closed++,
  });
  const options = { signal: controller.signal, maxClients: 1 };
  await using running = startWith(Array(100).fill(gone), options);
  await turn();
  controller.abort(); // closes none again, as nothing is kept of them
  assertEquals(closed, 100);
  assertEquals([running.accepted.all, running.errors.all], [[], []]);
});

it("serve: what the fakes do, real sockets do", async () => {
  const listener = listen();
  const { port } = listener.addr;
  assertThrows(() => Deno.listen({ hostname: "127.0.0.1", port }), AddrInUse);
  const accepting = listener.accept();
  listener[Symbol.dispose]();
  listener[Symbol.dispose]();
  await assertRejects(() => accepting, BadResource);
  await assertRejects(() => listener.accept(), BadResource);
  using pair = await connected();
  assertEquals(await pair.here.write(new Uint8Array(0)), 0);
  const part = await pair.here.write(encode(MORE_THAN_BUFFERS));
  assert(part > 0 && part < MORE_THAN_BUFFERS.length, `${part} bytes`);
  const reading = receiveOne(pair.here);
  pair.here[Symbol.dispose]();
  pair.here[Symbol.dispose]();
  await assertRejects(() => reading, Interrupted);
  await assertRejects(() => pair.here.write(new Uint8Array(0)), BadResource);
});

test("serve: an option that is left out has its default", async () => {
  const fakes = Array(2000).fill(fake());
  using _ = onListen(({ hostname, port, tcpBacklog }) => {
    assertEquals([hostname, port], ["127.0.0.1", 8888]);
    assert(tcpBacklog! > 511, "Deno's default overflows in a burst");
    return listenerOf(fakes);
  });
  const go = Promise.withResolvers<void>();
  using timer = timers();
  await using _running = serve({ handler: () => go.promise });
  await turn();
  go.resolve();
  assertEquals(Math.round(Math.max(...timer.delays) / 100), 100);
  assertEquals(fakes.length, 2000 - 1024);
});

// connect

it("connect: it gives what the handler gives, has closed then, leaves nothing", async () => {
  await using running = start({ handler: (one) => greet(one, GREETING) });
  const { port } = running.addr;
  const { signal } = new AbortController();
  let kept: Deno.TcpConn;
  const handler = async (connection: Deno.TcpConn) => {
    kept = connection;
    assertEquals(listenersOn(signal), 1);
    return (await reply(connection, (greeting) => greeting)).length;
  };
  assertEquals(await connect({ port, signal, handler }), GREETING.length);
  assertThrows(() => kept.close(), BadResource);
  assertEquals(listenersOn(signal), 0);
});

it("connect: what the handler throws is the error, and is not tried again", async () => {
  await using running = start({ timeout: Infinity });
  using timer = timers();
  const { port } = running.addr;
  for (const error of [new ConnectionRefused("mine"), "text", null]) {
    for (const handler of [() => fail(error), () => Promise.reject(error)]) {
      const options = { port, wait: 5_000, timeout: Infinity, handler };
      const thrown = await errorOf(connect(options));
      assert(thrown === error, `${thrown} is not ${error}`);
    }
  }
  assertEquals(timer.delays, []); // none, as its time is Infinity
});

it("connect: its time covers a server that sends or reads nothing", async () => {
  using silent = listen();
  const { port } = silent.addr;
  const send = (one: Deno.TcpConn) => sendAll(one, MORE_THAN_BUFFERS);
  for (const handler of [receiveOne, send]) {
    const began = performance.now();
    const options = { port, timeout: 50, handler };
    const error = await errorOf(connect<unknown>(options));
    assertEquals(nameOf(error), "TimeoutError");
    assert(performance.now() - began >= 95, "50 ms, and 50 more");
  }
});

it("connect: renew starts the time anew, and does nothing at the end", async () => {
  using silent = listen();
  const { port } = silent.addr;
  let kept = () => {};
  const handler = async (connection: Deno.TcpConn, renew: () => void) => {
    kept = renew;
    for (let i = 0; i < 10; i++) {
      await pause(60);
      await sendAll(connection, "more\n");
      renew();
    }
    return "all sent";
  };
  assertEquals(await connect({ port, timeout: 300, handler }), "all sent");
  kept(); // a timer that it set would be left behind
});

it("connect: a greeting that comes in a standstill is whole", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const handler = (one: Deno.TcpConn) => receiveAll(one);
  const given = connect({ port, timeout: 400, handler });
  using peer = await listener.accept();
  await turn(); // The client reads.
  sendAndEnd(peer, GREETING);
  standStill(700);
  assertEquals(await given, GREETING);
});

test("connect: each try has the whole time, and the pauses take none of it", async () => {
  let tries = 0;
  using _ = onConnect((options) => ++tries < 5 ? refuse() : hang(options));
  // The four pauses take several times as long.
  const given = connect({ timeout: 10, wait: 5_000, handler });
  assertEquals(nameOf(await errorOf(given)), "TimeoutError");
  assertEquals(tries, 5);
});

test("connect: only a refusal is tried again, until the wait is over", async () => {
  let closed = 0;
  const { localAddr } = fake();
  const itself = { remoteAddr: { ...localAddr }, close: () => closed++ };
  const toItself = () => Promise.resolve(fake(itself));
  const other = () => Promise.reject(new TimedOut("no"));
  for (const act of [refuse, toItself, other]) {
    for (const wait of [undefined, 0, 120]) {
      using timer = timers();
      let tries = 0;
      using _ = onConnect(({ hostname, port }) => {
        assertEquals([hostname, port], ["127.0.0.1", 8888]);
        tries++;
        return act();
      });
      const began = performance.now();
      const error = await errorOf(connect({ wait, handler }));
      assert(error instanceof (act === other ? TimedOut : ConnectionRefused));
      const isRetried = wait === 120 && act !== other;
      assertEquals(tries > 1, isRetried);
      if (isRetried) assert(performance.now() - began >= 120);
      assertEquals(timer.delays[0], 10_000); // the default of timeout
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

test("connect: an abort ends a connect and a pause, with its reason", async () => {
  for (const act of [hang, refuse]) {
    for (const reason of [new Error("enough"), null]) {
      using _ = onConnect(act);
      const controller = new AbortController();
      const { signal } = controller;
      const given = errorOf(connect({ signal, wait: 60_000, handler }));
      for (let i = 0; i < 20; i++) await null; // into the connect, or the pause
      controller.abort(reason);
      const thrown = await soon(given);
      assert(thrown === reason, `${thrown} is not ${reason}`);
      assertEquals(listenersOn(signal), 0);
    }
  }
});

it("connect: an abort closes a connection, also one just made", async () => {
  await using running = start({ handler: receiveOne });
  for (let steps = 0; steps < 10; steps++) {
    const connection = await dial(running);
    const dialing = Promise.withResolvers<Deno.TcpConn>();
    using _ = onConnect(() => dialing.promise);
    const controller = new AbortController();
    const given = connect({ signal: controller.signal, handler: receiveOne });
    dialing.resolve(connection);
    for (let i = 0; i < steps; i++) await null;
    controller.abort(new Error("enough"));
    await assertRejects(() => given, Error, "enough");
    assertThrows(() => connection.close(), BadResource);
  }
});

test("serve, connect: what is wrong is refused before any connection", async () => {
  using _listen = onListen(() => fail(new Error("it listened")));
  using _connect = onConnect(() => fail(new Error("it connected")));
  const serves = (own: object) => Promise.try(serve, { handler, ...own });
  const connects = (own: object) => connect({ handler, ...own });
  for (const act of [serves, connects]) {
    for (const timeout of [0, -1, NaN, -Infinity, 2 ** 31]) {
      await assertRejects(() => act({ timeout }), RangeError, "timeout");
    }
    const signal = AbortSignal.abort(new Error("too late"));
    await assertRejects(() => act({ signal }), Error, "too late");
  }
  for (const maxClients of [0, 0.5, NaN]) {
    await assertRejects(() => serves({ maxClients }), RangeError, "maxClients");
  }
  for (const wait of [-1, NaN]) {
    await assertRejects(() => connects({ wait }), RangeError, "wait");
  }
});

// server.ts

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
  await reset(rude);
  await command.line(`127.0.0.1:${port} reset the connection`);
  // All at once, and yet served one by one.
  const ones: Deno.TcpConn[] = [];
  for (const _ of OUTCOMES) ones.push(await dial(command));
  const began = performance.now();
  for (const [act, words] of OUTCOMES) {
    using one = ones.shift()!;
    const address = `127.0.0.1:${one.localAddr.port}`;
    await command.line(`${address} connected`);
    await Promise.try(act, one).catch(() => {}); // may be too late: too long
    await command.line(`${address} ${words}`);
  }
  assert(performance.now() - began >= 500, "the last had half a second");
  command.signal("SIGINT");
  await command.line("Stopping: 0 clients to finish");
  await command.line("Served 5 clients");
  assertEquals([await command.end, command.err.all], [0, []]);
});

it("server.ts: a second signal cuts the clients off, with 130", async () => {
  using clock = fakeClock();
  using timer = timers();
  const command = await startServer("--greeting", "hello");
  using silent = await dial(command);
  const address = `127.0.0.1:${silent.localAddr.port}`;
  assertEquals(await receiveAll(silent), "hello");
  await command.line(`${address} connected`);
  command.signal("SIGINT");
  await command.line("Stopping: 1 client to finish");
  // Within 100 ms it is the same one: under `deno task`, a Ctrl-C comes twice.
  clock.add(99);
  command.signal("SIGINT");
  await turn();
  assertEquals(command.out.all.length, 3);
  clock.add(1);
  command.signal(Deno.build.os === "windows" ? "SIGINT" : "SIGTERM");
  await command.line(`${address} cut off`);
  await command.line("Served 1 client");
  assertEquals(await command.end, 130);
  assert(!timer.delays.includes(5_000), "then it waits for no reader");
});

it("server.ts: with --once it serves exactly one, of several at once", async () => {
  for (const [act, words, code] of OUTCOMES) {
    const command = await startServer("--once", "--timeout=0.5");
    const ones = await Promise.all([1, 2, 3].map(() => dial(command)));
    for (const one of ones) {
      Promise.try(act, one).catch(() => {}); // two of them are not served
    }
    assertEquals(await command.end, code);
    for (const one of ones) one[Symbol.dispose]();
    const lines = command.out.all.map((line) => line.replace(/^127\S+ /, ""));
    assertEquals(lines.slice(1), ["connected", words, "Served 1 client"]);
  }
});

it("server.ts: stopped without a client its code is 0, with --once 1", async () => {
  for (const args of [[], ["--once"]]) {
    const command = await startServer(...args);
    command.signal("SIGINT");
    assertEquals(await command.end, args.length);
  }
});

test("server.ts: an error of the system is the client's, any other is shown", async () => {
  const route = Object.assign(new Error("no route"), { code: "EHOSTUNREACH" });
  for (const error of [route, new Error("mine")]) {
    const broken = fake({ closeWrite: () => Promise.reject(error) });
    using _ = onListen(() => listenerOf([broken]));
    const command = await startServer("--once");
    await command.line("127.0.0.1:7 connected");
    const words = error === route ? "reset the connection" : "failed";
    await command.line(`127.0.0.1:7 ${words}`);
    assertEquals(await command.end, 1);
    const shown = error === route ? /^$/ : /^Error: mine\n {4}at /;
    assertMatch(command.err.all.join("\n"), shown);
  }
});

it("server.ts: where nobody reads it serves on, and 2 ** 24 characters wait", async () => {
  const command = await startServer();
  const reader = stall(command);
  const text = "x".repeat(65_000);
  for (let i = 0; i < 270; i++) await exchange(command, `${i} ${text}`);
  reader.resolve();
  let said = "";
  while (!said.endsWith(" dropped")) said = await command.out.next();
  // From then on, lines are printed again.
  await exchange(command, "the last");
  while (!/: the last$/.test(await command.out.next()));
  command.signal("SIGINT");
  assertEquals(await command.end, 0);
  const lines = command.out.all.filter((line) => line.startsWith("127"));
  assertEquals(said, `${2 * 271 - lines.length} lines dropped`);
  const before = command.out.all.slice(0, command.out.all.indexOf(said));
  const whole = before.filter((line) => line.endsWith(text));
  assert(whole.length > 255 && whole.length < 260, `${whole.length} replies`);
  assert(before.length - 2 * whole.length < 5, "a short one is dropped, too");
  const numbers = whole.map((line) => Number(line.split(" ")[2]));
  assertEquals(numbers, numbers.toSorted((a, b) => a - b));
});

test("server.ts: at its end it waits for a reader, until a signal or 5 seconds", async () => {
  const codes = { reader: 0, signal: 130, time: 1 };
  for (const [event, code] of Object.entries(codes)) {
    const isTime = event === "time";
    using _timers = timers((delay) => isTime && delay === 5_000 ? 9 : delay);
    const accepting = Promise.withResolvers<Deno.TcpConn>();
    using _listen = onListen(() => listenerOf([accepting.promise]));
    const command = await startServer("--once");
    const reader = stall(command);
    accepting.resolve(fake(reads("hi")));
    assertEquals(await soon(command.end), "waits");
    if (event === "reader") reader.resolve();
    if (event === "signal") command.signal("SIGINT");
    const ended = await (isTime ? command.end : soon(command.end));
    assertEquals([ended, command.err.all.length], [code, isTime ? 1 : 0]);
    assertEquals(command.out.all.length, event === "reader" ? 4 : 1);
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
      assertEquals(await exchange(command), GREETING);
      command.write = (bytes) => Promise.resolve(bytes.length);
      command.signal("SIGINT");
    }
    assertEquals([await command.end, command.err.all], [args.length, said]);
    const last = args.length === 0 ? "Served 2 clients" : "Listening";
    assert(command.out.all.at(-1)!.startsWith(last));
  }
  const help = Object.assign(run(server.main, "--help"), { write: fails });
  assertEquals([await help.end, help.err.all], [1, said]);
});

// client.ts

it("client.ts: it waits for a server, and prints each line as it happens", async () => {
  const port = freePort();
  const flags = ["-p", `${port}`, "--wait=9", "--reply", "one\x1b\ntwo\n"];
  const command = run(client.main, ...flags);
  await pause(100); // in which it is refused
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
  const cases: [(one: Deno.TcpConn) => unknown, string][] = [
    [receiveOne, "took too long; give it more time with --timeout SECONDS"],
    [handler, "closed without a greeting"],
    [long, "sent a greeting longer than 65536 bytes"],
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
    assertEquals(command.err.all, [`error: ${address} ${words}`]);
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

test("client.ts: any error after connecting is a reset connection", async () => {
  const broken = fake({ read: () => Promise.reject(new Error("no route")) });
  using _ = onConnect(() => Promise.resolve(broken));
  const command = run(client.main);
  assertEquals(await command.end, 1);
  assertEquals(command.err.all, ["error: 127.0.0.1:8888 reset the connection"]);
});

// Both commands

it("both: they talk to each other, with --quiet in fewer lines", async () => {
  const command = await startServer("--once", "--greeting=hello", "--quiet");
  using lines = capture("log");
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
    // Of a repeated flag the last one counts.
    const command = run(main, "--host=::1", "--port", "1", "-p", "065535");
    assertEquals([await command.end, command.out.all], [1, []]);
    const [said = "", ...more] = command.err.all;
    assert(said.startsWith("error: ") && said.includes(words), said);
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

/** A reader that gives these, one a read as far as they fit, and the end. */
function reads(...pieces: (string | Uint8Array)[]) {
  const left = pieces.map((one) => typeof one === "string" ? encode(one) : one);
  const read = (buffer: Uint8Array): Promise<number | null> => {
    const bytes = left.shift();
    if (bytes === undefined) return Promise.resolve(null);
    const taken = bytes.subarray(0, buffer.length);
    buffer.set(taken);
    if (taken.length < bytes.length) left.unshift(bytes.subarray(taken.length));
    return Promise.resolve(taken.length);
  };
  return { read };
}

/** Readers of the text: byte by byte, and in two reads, cut at each place. */
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
    handler: (connection, renew) => {
      accepted.push(connection.remoteAddr);
      return options.handler?.(connection, renew);
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
    [Symbol.dispose]: () => {},
    ...fields,
  } as unknown as Deno.TcpConn;
}

/** Both ends of a connection. */
async function connected() {
  using listener = listen();
  const [here, there] = await Promise.all([dial(listener), listener.accept()]);
  const ends = new DisposableStack();
  for (const end of [here, there]) ends.use(end);
  return Object.assign(ends, { here, there });
}

/** A client that `reset` can be called with. */
async function resetter({ addr: { port } }: { addr: Deno.NetAddr }) {
  const socket = connectNode({ port, host: "127.0.0.1" });
  socket.on("error", () => {}); // what a reset may bring is not the test's business
  await once(socket, "connect");
  return socket;
}

async function reset(socket: Awaited<ReturnType<typeof resetter>>) {
  socket.resetAndDestroy();
  await once(socket, "close");
}

/** Keeps the process busy, as if it stood still. */
function standStill(milliseconds: number): void {
  const end = Date.now() + milliseconds;
  while (Date.now() < end);
}

/** What the promise gives within a turn of the event loop, or that it waits. */
async function soon(promise: Promise<unknown>): Promise<unknown> {
  let given: unknown = "waits";
  promise.then((value) => given = value);
  await turn();
  return given;
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
const receiveOne = (one: Deno.TcpConn) => one.read(new Uint8Array(1));
const listen = () => Deno.listen({ hostname: "127.0.0.1", port: 0 });
const dial = ({ addr: { port } }: { addr: Deno.NetAddr }) =>
  Deno.connect({ port });
const refuse = () => Promise.reject(new ConnectionRefused("no"));
const pause = (milliseconds: number) =>
  new Promise<void>((resolve) => setTimeout(resolve, milliseconds));
const turn = () => pause(0); // of the event loop
const encode = (text: string) => new TextEncoder().encode(text);
const sendAndEnd = (one: Deno.TcpConn, text: string) =>
  sendAll(one, text).then(() => one.closeWrite());
const nameOf = (error: unknown) => (error as Error).name;
const errorOf = (promise: Promise<unknown>) =>
  promise.then(() => fail(new Error("no error")), (error) => error);
const listenersOn = (signal: AbortSignal) =>
  getEventListeners(signal, "abort").length;

/** A command under way: what it prints, and its stop signals. */
function run(main: (args: string[]) => Promise<number>, ...args: string[]) {
  const out = new Events<string>();
  const err = new Events<string>();
  const signals = new Map<Deno.Signal, () => void>();
  const print = (text: string) => text.split("\n").forEach(out.push);
  const decoder = new TextDecoder();
  let rest = ""; // of a line that is written in parts
  const command = {
    out,
    err,
    /** What takes the bytes of stdout, and gives how many it took. */
    write: (bytes: Uint8Array) => Promise.resolve(bytes.length),
    signal: (name: Deno.Signal) => signals.get(name)!(),
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
  // The real ones are there as well: one that is left behind is noticed.
  const { addSignalListener } = Deno;
  const listenTo = (name: Deno.Signal, listener: () => void) => {
    signals.set(name, listener);
    addSignalListener(name, listener);
  };
  const replaced = new DisposableStack();
  replaced.use(replace(console, "error", err.push));
  replaced.use(replace(console, "log", print));
  replaced.use(replace(Deno.stdout, "write", write));
  replaced.use(replace(Deno, "addSignalListener", listenTo));
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
