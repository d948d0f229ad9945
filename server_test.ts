/**
 * Tests of the server and the client. First that the connections in memory
 * behave as real sockets do, then `serve`, `exchange`, the two commands and
 * both sides together. The connections in memory and the helpers come last.
 *
 * ```sh
 * deno test --allow-net
 * ```
 *
 * @module
 */

import {
  assert,
  assertEquals,
  assertMatch,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { connect as connectNode, createServer } from "node:net";
import { exchange, main as clientMain } from "./client.ts";
import {
  type Exchange,
  main as serverMain,
  type Outcome,
  serve,
  type ServeOptions,
  type Server,
} from "./server.ts";

const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const TEXT = "你好,客戶端 👋🏽";
const LIMIT = 64 * 1024;
const MORE_THAN_BUFFERS = "x".repeat(20_000_000);

const { state } = await Deno.permissions.query({ name: "net" });
if (state !== "granted") {
  console.log(
    "Without net access, some are ignored: `deno test --allow-net` runs them all.",
  );
}

// Connections in memory behave as real sockets do: the same checks run on both.

/** What the peer does. */
interface PeerOf {
  sends?: string;
  /** Whether it then ends its half. */
  ends?: boolean;
  /** Whether it reads. */
  reads?: boolean;
}

const connectionsTo = {
  "in memory": ({ sends, ends, reads = true }: PeerOf) =>
    Promise.resolve(
      new MemoryConnection({
        reads: [...sends ? [sends] : [], ...ends ? [null] : []],
        write: reads ? undefined : never,
      }),
    ),
  "real": async ({ sends = "", ends, reads = true }: PeerOf) => {
    using listener = listen();
    const [connection, peer] = await Promise.all([
      Deno.connect({ port: listener.addr.port }),
      listener.accept(),
    ]);
    await writeAll(peer, sends);
    if (ends) await peer.closeWrite();
    // Until this side closes: then a read of the peer ends.
    const end = reads ? readAll(peer).catch(() => {}) : Promise.resolve();
    opened.push(async () => {
      await end;
      peer.close();
    });
    return connection;
  },
};

/** What the checks opened, to be closed. */
const opened: (() => Promise<void>)[] = [];

const checks: Record<
  string,
  (to: (peer: PeerOf) => Promise<Deno.TcpConn>) => Promise<void>
> = {
  "a close makes the pending read reject": async (to) => {
    const connection = await to({});
    const read = connection.read(new Uint8Array(1));
    connection.close();
    await assertRejects(() => read, Deno.errors.Interrupted);
  },
  "a close makes the pending write reject": async (to) => {
    const connection = await to({ reads: false });
    const write = writeAll(connection, MORE_THAN_BUFFERS);
    await turn();
    connection[Symbol.dispose]();
    await assertRejects(() => write, Deno.errors.Interrupted);
  },
  "after the close, every call rejects": async (to) => {
    const connection = await to({});
    connection.close();
    connection[Symbol.dispose]();
    const { BadResource } = Deno.errors;
    const bytes = new Uint8Array(1);
    await assertRejects(() => connection.read(bytes), BadResource);
    await assertRejects(() => connection.write(bytes), BadResource);
    await assertRejects(() => connection.closeWrite(), BadResource);
    assertThrows(() => connection.close(), BadResource);
  },
  "after the half-close, it can read and not write": async (to) => {
    using connection = await to({ sends: "hi", ends: true });
    await connection.closeWrite();
    await connection.closeWrite();
    assertEquals(await readAll(connection), "hi");
    const bytes = new Uint8Array(1);
    await assertRejects(() => connection.write(bytes), Deno.errors.BrokenPipe);
  },
  "the end is read again and again": async (to) => {
    using connection = await to({ sends: "hi", ends: true });
    const bytes = new Uint8Array(4);
    const counts = [];
    for (let i = 0; i < 3; i++) counts.push(await connection.read(bytes));
    assertEquals(counts, [2, null, null]);
  },
  "what does not fit into a read stays for the next": async (to) => {
    using connection = await to({ sends: "abc", ends: true });
    const bytes = new Uint8Array(2);
    const counts = [await connection.read(bytes), await connection.read(bytes)];
    assertEquals([counts, bytes], [[2, 1], encode("cb")]);
  },
};

for (const [what, check] of Object.entries(checks)) {
  test(`connection in memory: ${what}`, () =>
    check(connectionsTo["in memory"]));

  socketTest(`real connection: ${what}`, async () => {
    await check(connectionsTo["real"]);
    for (const close of opened.splice(0)) await close();
  });
}

for (
  const [kind, give] of [
    ["in memory", () => new MemoryListener([])],
    ["real", listen],
  ] as const
) {
  const run = kind === "real" ? socketTest : test;
  run(`listener ${kind}: a close makes the pending accept reject`, async () => {
    const listener = give();
    const accept = listener.accept();
    listener[Symbol.dispose]();
    listener[Symbol.dispose]();
    await assertRejects(() => accept, Deno.errors.BadResource);
    await assertRejects(() => listener.accept(), Deno.errors.BadResource);
  });
}

socketTest("a real connection to itself has one address twice", async () => {
  const free = listen();
  const { port } = free.addr;
  free.close();
  const address = { host: "127.0.0.1", localAddress: "127.0.0.1" };
  const socket = connectNode({ ...address, port, localPort: port });
  await new Promise((connected, failed) => {
    socket.once("connect", connected);
    socket.once("error", failed);
  });
  assertEquals([socket.localPort, socket.remotePort], [port, port]);
  await new Promise((closed) => socket.once("close", closed).destroy());
}, Deno.build.os === "linux");

// serve: the exchange

socketTest(
  "serve: its half ends after the greeting, the client's does not",
  async () => {
    await using server = start();
    using connection = await Deno.connect({ port: server.port });
    assertEquals(await readAll(connection), GREETING);
    await writeAll(connection, "still ");
    await writeAll(connection, "here");
    await connection.closeWrite();
    assertEquals((await server.over.next()).reply, "still here");
  },
);

socketTest(
  "serve: a client that replies before it reads is heard and greeted",
  async () => {
    await using server = start();
    using connection = await Deno.connect({ port: server.port });
    await writeAll(connection, REPLY);
    await connection.closeWrite();
    assertEquals((await server.over.next()).reply, REPLY);
    assertEquals(await readAll(connection), GREETING);
  },
);

socketTest(
  "serve: a client that has replied and gone before it is accepted is heard",
  async () => {
    await using server = start({ maxClients: 1 });
    using first = await Deno.connect({ port: server.port });
    await server.connected.next();
    const early = await Deno.connect({ port: server.port });
    await writeAll(early, REPLY);
    early.close();
    first.close();
    assertEquals((await server.over.next()).outcome, "left");
    const { outcome, reply } = await server.over.next();
    assertEquals([outcome, reply], ["replied", REPLY]);
  },
  // Other systems may tell of the reset that the greeting meets instead.
  Deno.build.os === "linux",
);

socketTest(
  "serve: the lesson's client is served: one recv, one send, close",
  async () => {
    await using server = start();
    using connection = await Deno.connect({ port: server.port });
    const buffer = new Uint8Array(1024);
    const count = await connection.read(buffer);
    assertEquals(buffer.subarray(0, count!), encode(GREETING));
    await writeAll(connection, REPLY);
    connection[Symbol.dispose]();
    assertEquals((await server.over.next()).reply, REPLY);
  },
);

socketTest(
  "serve: a reply comes with the address that it came from",
  async () => {
    await using server = start();
    using first = await Deno.connect({ port: server.port });
    using second = await Deno.connect({ port: server.port });
    for (const connection of [second, first]) {
      const { port } = connection.localAddr;
      await writeAll(connection, `from ${port}`);
      await connection.closeWrite();
      const { client, reply } = await server.over.next();
      assertEquals([client.port, reply], [port, `from ${port}`]);
    }
  },
);

socketTest(
  "serve: the greeting can be chosen, and is sent as it is",
  async () => {
    const greeting = "\uFEFFhello\r\n\0";
    await using server = start({ greeting });
    using connection = await Deno.connect({ port: server.port });
    assertEquals(await readAll(connection), greeting);
  },
);

for (const [how, reads] of Object.entries(pieces())) {
  test(`serve: a reply that comes ${how} is read whole`, async () => {
    const peer = new MemoryConnection({ reads: [...reads, null] });
    await using server = startInMemory([peer]);
    assertEquals((await server.over.next()).reply, TEXT);
  });
}

socketTest(
  "serve: a reply in pieces on a real connection is read whole",
  async () => {
    await using server = start();
    using connection = await Deno.connect({ port: server.port });
    connection.setNoDelay();
    for (const byte of encode(TEXT)) {
      await writeAll(
        connection,
        Uint8Array.of(byte),
      );
    }
    await connection.closeWrite();
    assertEquals((await server.over.next()).reply, TEXT);
  },
);

test("serve: a greeting is sent whole where a write takes one byte", async () => {
  const peer = new MemoryConnection({ reads: [null], write: () => 1 });
  await using server = startInMemory([peer], { greeting: TEXT });
  await server.over.next();
  assertEquals(new Uint8Array(peer.sent), encode(TEXT));
});

test("serve: bytes that are not UTF-8 become U+FFFD in a reply", async () => {
  const peer = new MemoryConnection({
    reads: [Uint8Array.of(0xff, 0x41, 0xe4), null],
  });
  await using server = startInMemory([peer]);
  assertEquals((await server.over.next()).reply, "\uFFFDA\uFFFD");
});

socketTest(
  "serve: a slow reader gets the whole of a long greeting",
  async () => {
    const greeting = "好".repeat(2_000_000);
    await using server = start({ greeting });
    using connection = await Deno.connect({ port: server.port });
    await server.connected.next();
    assertEquals(
      await exchange({ port: server.port, maxGreetingBytes: 6_000_000 }),
      greeting,
    );
    assertEquals(await readAll(connection), greeting);
  },
);

// serve: a handler of one's own

socketTest("serve: what a handler resolves to is the reply", async () => {
  await using server = start({
    greeting: "name? ",
    handler: async (connection) => {
      const name = await readLine(connection);
      await writeAll(connection, `hello, ${name}\n`);
      return name;
    },
  });
  using connection = await Deno.connect({ port: server.port });
  await writeAll(connection, "Ann\n");
  // The handler could write after the greeting: there was no half-close.
  assertEquals(await readAll(connection), "name? hello, Ann\n");
  const { outcome, reply } = await server.over.next();
  assertEquals([outcome, reply], ["replied", "Ann"]);
});

test("serve: the connection is closed when the handler has settled", async () => {
  const peer = new MemoryConnection();
  const before: string[] = [];
  await using server = startInMemory([peer], {
    handler: () => Promise.resolve(`${before.push(...peer.log)}`),
  });
  await server.over.next();
  assertEquals([before, peer.log], [["write"], ["write", "close"]]);
});

test("serve: an empty text of a handler is no reply", async () => {
  const handler = () => Promise.resolve("");
  await using server = startInMemory([new MemoryConnection()], { handler });
  assertEquals((await server.over.next()).outcome, "left");
});

const connectionErrors = [
  Deno.errors.ConnectionReset,
  Deno.errors.ConnectionAborted,
  Deno.errors.BrokenPipe,
  Deno.errors.NotConnected,
  Deno.errors.TimedOut,
  Deno.errors.BadResource,
  Deno.errors.Interrupted,
];

for (const type of connectionErrors) {
  test(`serve: a handler that rejects with ${type.name} means a reset`, async () => {
    using stderr = capture();
    const handler = () => Promise.reject(new type("gone"));
    await using server = startInMemory([new MemoryConnection()], { handler });
    const { outcome, reply } = await server.over.next();
    assertEquals([outcome, reply, stderr.all], ["reset", "", []]);
  });
}

for (
  const { how, handler } of [
    {
      how: "rejects",
      handler: () => Promise.reject(new TypeError("my mistake")),
    },
    {
      how: "throws",
      handler: () => {
        throw new TypeError("my mistake");
      },
    },
    {
      how: "finds something too long",
      handler: () => Promise.reject(new Deno.errors.InvalidData("my mistake")),
    },
  ]
) {
  test(`serve: a handler that ${how} has failed, and is reported`, async () => {
    using stderr = capture();
    const peers = [new MemoryConnection(), new MemoryConnection()];
    await using server = startInMemory(peers, { handler });
    for (const peer of peers) {
      const { outcome, reply } = await server.over.next();
      assertEquals([outcome, reply, peer.log.at(-1)], ["failed", "", "close"]);
    }
    assertEquals(stderr.all.length, 2);
    assertMatch(stderr.all[0]!, /my mistake/);
  });
}

test("serve: once the time is up, nothing that a handler does changes the outcome", async () => {
  const go = Promise.withResolvers<void>();
  const next = new MemoryConnection();
  const server = startInMemory([new MemoryConnection(), next], {
    timeout: 20,
    maxClients: 1,
    handler: async (connection) => {
      await connection.read(new Uint8Array(1)).catch(() => {});
      if (connection === next) return "";
      closed.resolve();
      await go.promise;
      return "a reply of my own";
    },
  });
  const closed = Promise.withResolvers<void>();
  await closed.promise;
  const down = server.shutdown();
  await turn();
  // Its place and the end wait for the handler.
  assertEquals([server.connected.all.length, server.over.all], [1, []]);
  go.resolve();
  await down;
  assertEquals(server.over.all.map(({ outcome, reply }) => [outcome, reply]), [
    ["timed-out", ""],
  ]);
});

test("serve: a handler is called where the greeting could not be delivered", async () => {
  const peer = new MemoryConnection({
    write: () => fail(new Deno.errors.BrokenPipe("gone")),
    reads: ["said before", null],
  });
  await using server = startInMemory([peer], { handler: readAll });
  assertEquals((await server.over.next()).reply, "said before");
});

for (const type of [Deno.errors.ConnectionReset, Deno.errors.Interrupted]) {
  test(`serve: no handler is called where the greeting met ${type.name}`, async () => {
    let called = false;
    const peer = new MemoryConnection({ write: () => fail(new type("")) });
    await using server = startInMemory([peer], {
      handler: () => Promise.resolve(`${called = true}`),
    });
    assertEquals((await server.over.next()).outcome, "reset");
    assertEquals(called, false);
  });
}

test("serve: an empty greeting sends nothing, and nothing is paced", async () => {
  const handler = (connection: Deno.TcpConn) => readAll(connection);
  const peers = Array.from({ length: 100 }, () => new MemoryConnection());
  const controller = new AbortController();
  const { signal } = controller;
  const server = startInMemory(peers, { greeting: "", handler, signal });
  for (const _ of peers) await server.connected.next();
  controller.abort();
  await server.finished;
  assertEquals(peers[0]!.log, ["read", "close"]);
});

test("serve: with a timeout of Infinity, there is no timer", async () => {
  using timer = timers();
  const peer = new MemoryConnection({ reads: ["hello", null] });
  await using server = startInMemory([peer], { timeout: Infinity });
  assertEquals((await server.over.next()).reply, "hello");
  assertEquals(timer.delays, []);
});

// serve: clients that fail

socketTest("serve: a client that ends without a reply has left", async () => {
  await using server = start();
  using connection = await Deno.connect({ port: server.port });
  await connection.closeWrite();
  const { outcome, reply } = await server.over.next();
  assertEquals([outcome, reply], ["left", ""]);
});

socketTest("serve: a silent client is closed when its time is up", async () => {
  await using server = start({ timeout: 50 });
  // Twice, as the second one comes when no deadline is running.
  for (let i = 0; i < 2; i++) {
    const began = performance.now();
    using connection = await Deno.connect({ port: server.port });
    assertEquals(await readAll(connection), GREETING);
    assertEquals((await server.over.next()).outcome, "timed-out");
    assert(performance.now() - began >= 50);
  }
});

test("serve: a client that keeps sending gets no more time", async () => {
  await using server = startInMemory([dribbler()], { timeout: 50 });
  const { outcome, reply } = await server.over.next();
  assertEquals([outcome, reply], ["timed-out", ""]);
});

test("serve: each client has its own time, whoever came before", async () => {
  const [silent, busy, last] = [
    new MemoryConnection(),
    new MemoryConnection({ reads: ["hi", null] }),
    new MemoryConnection(),
  ];
  await using server = startInMemory([silent, busy, last], { timeout: 30 });
  const outcomes = [];
  for (let i = 0; i < 3; i++) outcomes.push((await server.over.next()).outcome);
  assertEquals(outcomes, ["replied", "timed-out", "timed-out"]);
});

socketTest(
  "serve: a client that does not take a long greeting runs out of time",
  async () => {
    const server = start({ greeting: MORE_THAN_BUFFERS, timeout: 50 });
    using _deaf = await Deno.connect({ port: server.port });
    assertEquals((await server.over.next()).outcome, "timed-out");
    await server.shutdown();
  },
);

socketTest(
  "serve: an abort ends a long greeting that is not taken",
  async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const server = start({ greeting: MORE_THAN_BUFFERS, signal });
    using _deaf = await Deno.connect({ port: server.port });
    await server.connected.next();
    await turn();
    controller.abort();
    await server.finished;
    assertEquals(server.over.all.map(({ outcome }) => outcome), ["aborted"]);
  },
);

for (
  const { what, reply } of [
    { what: "short replies", reply: REPLY },
    { what: "replies of 60 kB", reply: "x".repeat(60_000) },
  ]
) {
  socketTest(
    `serve: after a standstill, ${what} that came in time are read`,
    async () => {
      await using server = start({ timeout: 400 });
      const connections = [];
      for (let i = 0; i < 50; i++) {
        const connection = await Deno.connect({ port: server.port });
        await readAll(connection);
        connections.push(connection);
      }
      for (const connection of connections) {
        // As one write, which the buffers take at once.
        const written = connection.write(encode(reply));
        connection.closeWrite();
        written.catch(() => {});
      }
      standStill(600);
      const outcomes = new Map<Outcome, number>();
      for (const connection of connections) {
        const { outcome } = await server.over.next();
        outcomes.set(outcome, 1 + (outcomes.get(outcome) ?? 0));
        connection.close();
      }
      assertEquals([...outcomes], [["replied", 50]]);
    },
  );
}

test("serve: after a standstill, what takes longer to read is read", async () => {
  await using server = startInMemory([trickle()], { timeout: 100 });
  await server.connected.next();
  standStill(200);
  assertEquals((await server.over.next()).reply, "x".repeat(10));
});

socketTest(
  "serve: after a standstill, the time of a silent client is soon up",
  async () => {
    await using server = start({ timeout: 100 });
    using _silent = await Deno.connect({ port: server.port });
    await server.connected.next();
    standStill(200);
    const began = performance.now();
    assertEquals((await server.over.next()).outcome, "timed-out");
    assert(performance.now() - began < 1000);
  },
);

test("serve: after a standstill, a client that keeps sending gets no more than a second", async () => {
  await using server = startInMemory([dribbler()], { timeout: 20 });
  await server.connected.next();
  standStill(100);
  assertEquals((await server.over.next()).outcome, "timed-out");
});

test("serve: no timer is asked for a time that is past", async () => {
  using timer = timers();
  const peers = Array.from({ length: 200 }, () => {
    const peer = new MemoryConnection();
    // Slow to close, so that the next is due before it is its turn.
    const close = peer.close.bind(peer);
    peer.close = () => {
      standStill(1);
      close();
    };
    return peer;
  });
  await using server = startInMemory(peers, { timeout: 50 });
  for (const _ of peers) await server.over.next();
  assertEquals(timer.delays.filter((delay) => delay < 0), []);
});

test("serve: a silent client is closed whoever came and went before", async () => {
  const peers = Array.from({ length: 4 }, () => new MemoryConnection());
  const [, second, third, last] = peers;
  const listener = new MemoryListener([...peers]);
  using _ = listening(() => listener);
  await using server = start({ timeout: 200, maxClients: 3 });
  for (let i = 0; i < 3; i++) await server.connected.next();
  second!.gets(null);
  third!.gets(null);
  const outcomes = [];
  for (let i = 0; i < 4; i++) outcomes.push((await server.over.next()).outcome);
  assertEquals(outcomes, ["left", "left", "timed-out", "timed-out"]);
  assertEquals(last!.log.at(-1), "close");
});

socketTest(
  "serve: a client that resets before it is accepted harms nobody",
  async () => {
    await using server = start({ maxClients: 1 });
    using first = await Deno.connect({ port: server.port });
    await server.connected.next();
    for (let i = 0; i < 20; i++) await (await resetter(server.port)).reset();
    first.close();
    assertEquals((await server.over.next()).outcome, "left");
    assertEquals(await exchange({ port: server.port }), GREETING);
  },
);

socketTest(
  "serve: a client that resets before its reply has reset",
  async () => {
    await using server = start();
    const rude = await resetter(server.port);
    await server.connected.next();
    await rude.reset();
    const { client, outcome } = await server.over.next();
    assertEquals([client.port, outcome], [rude.port, "reset"]);
    assertEquals(await exchange({ port: server.port }), GREETING);
  },
);

socketTest(
  "serve: a reply that breaks off in a reset is not a reply",
  async () => {
    await using server = start();
    const rude = await resetter(server.port);
    await rude.write("half a re");
    await server.connected.next();
    await rude.reset();
    const { outcome, reply } = await server.over.next();
    assertEquals([outcome, reply], ["reset", ""]);
  },
);

test("serve: an error of any call on one connection stays with its client", async () => {
  const error = new Deno.errors.BrokenPipe("broken");
  const fail = () => {
    throw error;
  };
  const behaviours: Behaviour[] = [
    { write: fail, reads: [error] },
    { write: (data) => data.length > 5 ? 5 : fail(), reads: [error] },
    { closeWrite: fail, reads: [error] },
    { reads: [error] },
    { reads: ["half", error] },
    { reads: ["hello", null] },
  ];
  const peers = behaviours.map((behaviour) => new MemoryConnection(behaviour));
  await using server = startInMemory(peers);
  const outcomes = [];
  for (const _ of peers) outcomes.push((await server.over.next()).outcome);
  assertEquals(outcomes.sort(), [...Array(5).fill("reset"), "replied"].sort());
  for (const { log } of peers) assertEquals(log.at(-1), "close");
});

test("serve: an outcome comes when the connection is closed", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const last = new Events<string | undefined>();
  await using _server = startInMemory([peer], {
    onOutcome: () => last.push(peer.log.at(-1)),
  });
  assertEquals(await last.next(), "close");
});

test("serve: a client that can't be greeted any more is still heard", async () => {
  const fail = () => {
    throw new Deno.errors.BrokenPipe("broken");
  };
  const peers = [
    new MemoryConnection({ write: fail, reads: ["one", null] }),
    new MemoryConnection({ closeWrite: fail, reads: ["two", null] }),
  ];
  await using server = startInMemory(peers);
  const replies = [await server.over.next(), await server.over.next()];
  assertEquals(replies.map(({ reply }) => reply).sort(), ["one", "two"]);
});

for (const maxReplyBytes of [undefined, 10, 1000]) {
  const limit = maxReplyBytes ?? LIMIT;

  socketTest(
    `serve: a reply of ${limit} bytes, the limit, is taken`,
    async () => {
      await using server = start({ maxReplyBytes });
      const reply = "x".repeat(limit);
      await exchange({ port: server.port, reply });
      assertEquals((await server.over.next()).reply, reply);
    },
  );

  socketTest(
    `serve: a client is cut off at ${limit + 1} bytes of a reply`,
    async () => {
      await using server = start({ maxReplyBytes });
      using connection = await Deno.connect({ port: server.port });
      await writeAll(connection, "x".repeat(limit + 1));
      const { outcome, reply } = await server.over.next();
      assertEquals([outcome, reply], ["too-long", ""]);
      assertEquals(await exchange({ port: server.port }), GREETING);
    },
  );
}

test("serve: deaf clients run out of time and hold up nobody", async () => {
  // More of them than may wait for their first write.
  const deaf = Array.from({ length: 100 }, () => {
    let first = true;
    const write = () => {
      const count = first ? 1 : never();
      first = false;
      return count;
    };
    return new MemoryConnection({ write });
  });
  const last = new MemoryConnection({ reads: ["hello", null] });
  await using server = startInMemory([...deaf, last], { timeout: 100 });
  assertEquals((await server.over.next()).reply, "hello");
  for (const _ of deaf) {
    assertEquals((await server.over.next()).outcome, "timed-out");
  }
});

// serve: accepting

test("serve: no client is accepted while 32 wait for their first bytes", async () => {
  const go = Promise.withResolvers<number>();
  const waiting = Array.from(
    { length: 32 },
    () => new MemoryConnection({ write: () => go.promise }),
  );
  const next = new MemoryConnection();
  const controller = new AbortController();
  const { signal } = controller;
  await using server = startInMemory([...waiting, next], { signal });
  using _end = { [Symbol.dispose]: () => controller.abort() };
  for (const _ of waiting) await server.connected.next();
  await turn(); // in which the next one could have been accepted
  assertEquals(server.listener.accepted, 32);
  go.resolve(encode(GREETING).length);
  await server.connected.next();
});

socketTest(
  "serve: beyond maxClients a client waits, is not refused, and is served",
  async () => {
    await using server = start({ maxClients: 2 });
    using first = await Deno.connect({ port: server.port });
    using _second = await Deno.connect({ port: server.port });
    const third = exchange({ port: server.port, reply: "third" });
    await server.connected.next();
    await server.connected.next();
    await writeAll(first, "first");
    await first.closeWrite();
    assertEquals((await server.over.next()).reply, "first");
    assertEquals(server.connected.all.length, 2);
    assertEquals(await third, GREETING);
    assertEquals((await server.over.next()).reply, "third");
  },
);

for (
  const { what, error } of [
    { what: "NotConnected", error: new Deno.errors.NotConnected("gone") },
    { what: "an unknown error", error: new Error("Invalid argument") },
    { what: "no error object", error: "nothing known" as unknown as Error },
  ]
) {
  test(`serve: ${what} of accepting concerns one client and costs no time`, async () => {
    const lost = Array<Error>(300).fill(error);
    const peer = new MemoryConnection({ reads: ["hello", null] });
    const errors = new Events<Error>();
    using timer = timers();
    await using server = startInMemory([...lost, peer], {
      onAcceptError: errors.push,
      timeout: Infinity,
    });
    assertEquals((await server.over.next()).reply, "hello");
    // A guard against spinning, a millisecond after each hundred.
    assertEquals(timer.delays, [1, 1, 1]);
    assertEquals(errors.all, []);
  });
}

test("serve: the guard against spinning counts those lost in a row", async () => {
  const lost = Array<Error>(99).fill(new Deno.errors.NotConnected("gone"));
  const peer = () => new MemoryConnection({ reads: ["hello", null] });
  using timer = timers();
  await using server = startInMemory([...lost, peer(), ...lost, peer()], {
    timeout: Infinity,
  });
  await server.over.next();
  await server.over.next();
  assertEquals(timer.delays, []);
});

for (const code of ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]) {
  test(`serve: at ${code}, it says so once, waits and goes on`, async () => {
    const full = () => Object.assign(new Error(code), { code });
    const peer = () => new MemoryConnection({ reads: ["hello", null] });
    const errors = new Events<Error>();
    const began = performance.now();
    await using server = startInMemory(
      [full(), full(), peer(), full(), peer()],
      { onAcceptError: errors.push },
    );
    assertEquals((await server.over.next()).reply, "hello");
    assert(performance.now() - began >= 190, "it waits between two tries");
    assertEquals((await server.over.next()).reply, "hello");
    assertEquals(errors.all.map(({ message }) => message), [code]);
  });
}

test("serve: after a minute without a shortage, a new one is reported", async () => {
  const errors = new Events<Error>();
  let minute = 0;
  const now = performance.now.bind(performance);
  using _ = replace(performance, "now", () => now() + minute);
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const shortages = ["one", "within the minute"].map(shortage);
  const accepts = [...shortages, peer, shortage("two")];
  await using server = startInMemory(accepts, {
    maxClients: 1,
    onAcceptError: (error) => {
      errors.push(error);
      minute += 59_000;
    },
    onOutcome: () => void (minute += 61_000),
  });
  assertEquals((await errors.next()).message, "one");
  assertEquals((await errors.next()).message, "two");
  await server.shutdown();
});

test("serve: after a shortage, a shutdown ends the tries", async () => {
  const errors = new Events<Error>();
  const server = startInMemory([shortage("full")], {
    onAcceptError: errors.push,
  });
  await errors.next();
  await server.shutdown();
  assertEquals(server.listener.accepted, 1);
});

// serve: the end

socketTest(
  "serve: a shutdown takes no new clients and finishes the old",
  async () => {
    const server = start();
    using connection = await Deno.connect({ port: server.port });
    await server.connected.next();
    const down = server.shutdown();
    await assertRejects(() => exchange({ port: server.port }), Error);
    assertEquals(await readAll(connection), GREETING);
    await writeAll(connection, REPLY);
    await connection.closeWrite();
    assertEquals((await server.over.next()).reply, REPLY);
    await Promise.all([down, server.finished, server.shutdown()]);
    assertEquals(server.connected.all.length, 1);
    // The port is free again.
    Deno.listen({ hostname: "127.0.0.1", port: server.port }).close();
  },
);

test("serve: a client accepted while the server stops is closed, not served", async () => {
  const late = new MemoryConnection();
  const accept = Promise.withResolvers<MemoryConnection>();
  const listener = new MemoryListener([]);
  listener.accept = () => accept.promise;
  using _ = listening(() => listener);
  const server = start();
  const down = server.shutdown();
  accept.resolve(late);
  await down;
  assertEquals(late.log, ["close"]);
  assertEquals(server.connected.all, []);
});

socketTest(
  "serve: at the end of its block, `await using` has shut the server down",
  async () => {
    let port;
    {
      await using server = start();
      port = server.port;
    }
    await assertRejects(
      () => exchange({ port }),
      Deno.errors.ConnectionRefused,
    );
  },
);

socketTest(
  "serve: aborting ends the server and its exchanges at once",
  async () => {
    const controller = new AbortController();
    const server = start({ signal: controller.signal });
    using connection = await Deno.connect({ port: server.port });
    assertEquals(await readAll(connection), GREETING);
    controller.abort();
    await server.finished;
    assertEquals(server.over.all.map(({ outcome }) => outcome), ["aborted"]);
    await assertRejects(
      () => exchange({ port: server.port }),
      Deno.errors.ConnectionRefused,
    );
  },
);

/** A signal, and the listeners that are on it. */
function watched() {
  const { signal } = new AbortController();
  const left = new Set<unknown>();
  signal.addEventListener = (_: string, fn: unknown) => void left.add(fn);
  signal.removeEventListener = (_: string, fn: unknown) => void left.delete(fn);
  return { signal, left };
}

test("serve: a server that has ended leaves nothing on its signal", async () => {
  const { signal, left } = watched();
  const server = startInMemory([], { signal });
  assertEquals(left.size, 1);
  await server.shutdown();
  assertEquals(left.size, 0);
});

test("serve: a server aborted as soon as it listens ends", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const onListen = () => controller.abort();
  const server = startInMemory([], { signal, onListen });
  await server.finished;
});

test("serve: a signal aborted before keeps the server from listening", () => {
  using _ = noSockets();
  const signal = AbortSignal.abort(new Error("too late"));
  assertThrows(() => serve({ signal }), Error, "too late");
});

// serve: callbacks

test("serve: a callback that throws or rejects is reported and stops nothing", async () => {
  const shown = new Events<unknown>();
  using _ = replace(console, "error", shown.push);
  const peer = () => new MemoryConnection({ reads: ["hello", null] });
  const over = new Events<string>();
  const server = startInMemory([peer(), shortage("full"), peer()], {
    onListen: () => {
      throw "onListen";
    },
    onConnect: () => Promise.reject("onConnect"),
    onOutcome: ({ reply }) => {
      over.push(reply);
      throw "onOutcome";
    },
    onAcceptError: () => Promise.reject("onAcceptError"),
  });
  await over.next();
  await over.next();
  await server.shutdown();
  assertEquals(
    new Set(shown.all),
    new Set(["onListen", "onConnect", "onOutcome", "onAcceptError"]),
  );
});

test("serve: what a callback throws may be impossible to report", async () => {
  using _ = replace(console, "error", () => {
    throw new Error("stderr is closed");
  });
  const peer = new MemoryConnection({ reads: ["hello", null] });
  await using server = startInMemory([peer], {
    onConnect: () => {
      throw new Error("mine");
    },
  });
  assertEquals((await server.over.next()).reply, "hello");
});

test("serve: what a callback throws can do nothing to the terminal", async () => {
  using stderr = capture();
  const peer = new MemoryConnection({ reads: ["\x1b[2J{", null] });
  await using server = startInMemory([peer], {
    onOutcome: ({ reply }) => {
      over.push(reply);
      JSON.parse(reply);
    },
  });
  const over = new Events<string>();
  await over.next();
  await server.shutdown();
  assertMatch(stderr.all[0]!, /SyntaxError: .*\\u001b\[2J/);
  // Its line ends are kept, and nothing else that a terminal obeys.
  assertMatch(stderr.all[0]!, /\n {4}at /);
  assertEquals(stderr.all[0]!.replaceAll("\n", "").match(/\p{Cc}/u), null);
});

test("serve: the end waits for what callbacks still do", async () => {
  for (const name of ["onListen", "onConnect", "onOutcome", "onAcceptError"]) {
    const go = Promise.withResolvers<void>();
    const called = Promise.withResolvers<void>();
    const peers = [new MemoryConnection({ reads: ["hello", null] })];
    const server = startInMemory([...peers, shortage("full")], {
      [name]: async () => {
        called.resolve();
        await go.promise;
      },
    });
    await called.promise;
    let ended = false;
    const down = server.shutdown().then(() => ended = true);
    await turn();
    await turn();
    assertEquals([name, ended], [name, false]);
    go.resolve();
    await down;
  }
});

test("serve: a callback may return shutdown() and go on", async () => {
  const peers = [0, 1].map(() => new MemoryConnection({ reads: ["hi", null] }));
  const listener = new MemoryListener(peers);
  using _ = listening(() => listener);
  const server: Server = serve({
    maxClients: 1,
    onOutcome: () => server.shutdown(),
  });
  await server.finished;
  assertEquals(listener.accepted, 1);
});

// serve: options

for (
  const { option, values, error } of [
    {
      option: "port",
      values: [-1, 1.5, 70_000, NaN, "8888"],
      error: RangeError,
    },
    {
      option: "timeout",
      values: [0, -1, NaN, -Infinity, 2_147_483_648, "10"],
      error: RangeError,
    },
    {
      option: "maxClients",
      values: [0, -1, 1.5, NaN, Infinity],
      error: RangeError,
    },
    {
      option: "maxReplyBytes",
      values: [0, -1, 1.5, NaN, Infinity, 536_870_889],
      error: RangeError,
    },
    { option: "hostname", values: ["", 5, null], error: TypeError },
    { option: "greeting", values: [5, null], error: TypeError },
    { option: "signal", values: [{}], error: TypeError },
  ]
) {
  test(`serve: a wrong ${option} is refused before it listens`, () => {
    using _ = noSockets();
    const name = option === "signal" ? "" : option;
    for (const value of values) {
      assertThrows(() => serve({ [option]: value }), error, name);
    }
  });
}

test("serve: its times are in milliseconds, and are said so", () => {
  const message = "a number of milliseconds above 0, at most 2147483647, not 0";
  assertThrows(() => serve({ timeout: 0 }), RangeError, message);
});

// exchange

socketTest(
  "exchange: the lesson's server is understood: accept, send, close",
  async () => {
    using listener = listen();
    const greeting = exchange({ port: listener.addr.port });
    using connection = await listener.accept();
    await writeAll(connection, GREETING);
    connection[Symbol.dispose]();
    assertEquals(await greeting, GREETING);
  },
);

socketTest(
  "exchange: it sends its reply and nothing else, then closes",
  async () => {
    using listener = listen();
    const reply = "x".repeat(1_000_000);
    const greeting = exchange({ port: listener.addr.port, reply });
    using connection = await listener.accept();
    await writeAll(connection, "hello");
    await connection.closeWrite();
    assertEquals(await readAll(connection), reply);
    assertEquals(await greeting, "hello");
  },
);

test("exchange: it replies only after the end of the greeting", async () => {
  const connection = new MemoryConnection({ reads: ["你", 0, "好", null] });
  using _ = connectTo(connection);
  const order: string[] = [];
  await exchange({
    onConnect: ({ port }) => void order.push(`connected to ${port}`),
    onGreeting: (greeting) => void order.push(greeting, ...connection.log),
  });
  assertEquals(order, [
    "connected to 7",
    "你好",
    ..."read ".repeat(4).trim().split(" "),
  ]);
  assertEquals(connection.log.slice(4), ["write", "close"]);
});

for (const [how, reads] of Object.entries(pieces())) {
  test(`exchange: a greeting that comes ${how} is read whole`, async () => {
    const peer = new MemoryConnection({ reads: [...reads, null] });
    using _ = connectTo(peer);
    assertEquals(await exchange(), TEXT);
  });
}

test("exchange: a reply is sent whole where a write takes one byte", async () => {
  const peer = new MemoryConnection({ reads: ["hi", null], write: () => 1 });
  using _ = connectTo(peer);
  await exchange({ reply: TEXT });
  assertEquals(new Uint8Array(peer.sent), encode(TEXT));
});

socketTest(
  "exchange: a greeting in pieces on a real connection is read whole",
  async () => {
    using listener = listen();
    const greeting = exchange({ port: listener.addr.port });
    using connection = await listener.accept();
    connection.setNoDelay();
    for (const byte of encode(TEXT)) {
      await writeAll(connection, Uint8Array.of(byte));
    }
    await connection.closeWrite();
    assertEquals(await greeting, TEXT);
  },
);

test("exchange: bytes that are not UTF-8 become U+FFFD in a greeting", async () => {
  const peer = new MemoryConnection({
    reads: [Uint8Array.of(0xff, 0x41, 0xe4), null],
  });
  using _ = connectTo(peer);
  assertEquals(await exchange(), "\uFFFDA\uFFFD");
});

socketTest(
  "exchange: a server that closes without a greeting is an error",
  async () => {
    using listener = listen();
    const result = exchange({ port: listener.addr.port });
    (await listener.accept()).close();
    await assertRejects(() => result, Deno.errors.UnexpectedEof);
  },
);

test("exchange: a greeting that breaks off is an error, whatever came before", async () => {
  const reads = ["half", new Deno.errors.ConnectionReset("reset")];
  const peer = new MemoryConnection({ reads });
  using _ = connectTo(peer);
  await assertRejects(() => exchange(), Deno.errors.ConnectionReset);
  assertEquals(peer.log.at(-1), "close");
});

test("exchange: a reply that can't be sent is an error", async () => {
  const write = () => {
    throw new Deno.errors.BrokenPipe("gone");
  };
  const peer = new MemoryConnection({ reads: ["hello", null], write });
  using _ = connectTo(peer);
  await assertRejects(() => exchange(), Deno.errors.BrokenPipe);
  assertEquals(peer.log.at(-1), "close");
});

for (const maxGreetingBytes of [undefined, 10, 1000]) {
  const limit = maxGreetingBytes ?? LIMIT;

  socketTest(
    `exchange: a greeting of ${limit} bytes, the limit, is taken`,
    async () => {
      const greeting = "x".repeat(limit);
      await using server = start({ greeting });
      assertEquals(
        await exchange({ port: server.port, maxGreetingBytes }),
        greeting,
      );
    },
  );

  socketTest(
    `exchange: a greeting of ${limit + 1} bytes is an error`,
    async () => {
      await using server = start({ greeting: "x".repeat(limit + 1) });
      await assertRejects(
        () => exchange({ port: server.port, maxGreetingBytes }),
        Deno.errors.InvalidData,
      );
    },
  );
}

// exchange: its time

socketTest(
  "exchange: a server that says nothing runs out of time",
  async () => {
    using listener = listen();
    const result = exchange({ port: listener.addr.port, timeout: 50 });
    using connection = await listener.accept();
    await assertRejects(() => result, Deno.errors.TimedOut);
    assertEquals(await readAll(connection), "");
  },
);

test("exchange: a server that keeps sending gets no more time", async () => {
  using _ = connectTo(dribbler());
  await assertRejects(() => exchange({ timeout: 50 }), Deno.errors.TimedOut);
});

socketTest(
  "exchange: a server that does not take a long reply runs out of time",
  async () => {
    using listener = listen();
    const { port } = listener.addr;
    const result = exchange({ port, reply: MORE_THAN_BUFFERS, timeout: 100 });
    using connection = await listener.accept();
    await writeAll(connection, "hello");
    await connection.closeWrite();
    await assertRejects(() => result, Deno.errors.TimedOut);
  },
);

socketTest(
  "exchange: an abort ends a long reply that is not taken",
  async () => {
    using listener = listen();
    const controller = new AbortController();
    const result = exchange({
      port: listener.addr.port,
      reply: MORE_THAN_BUFFERS,
      signal: controller.signal,
      onGreeting: () => void setTimeout(() => controller.abort("enough"), 20),
    });
    using connection = await listener.accept();
    await writeAll(connection, "hello");
    await connection.closeWrite();
    assertEquals(await result.catch((error) => error), "enough");
  },
);

socketTest(
  "exchange: after a standstill, a greeting that came in time is read",
  async () => {
    using listener = listen();
    const connected = Promise.withResolvers<void>();
    const greeting = "x".repeat(60_000);
    const result = exchange({
      port: listener.addr.port,
      timeout: 400,
      onConnect: () => connected.resolve(),
    });
    {
      using connection = await listener.accept();
      await connected.promise;
      connection.write(encode(greeting)).catch(() => {});
      connection.closeWrite();
      standStill(600);
      assertEquals(await result, greeting);
    }
  },
);

test("exchange: after a standstill, what takes longer to read is read", async () => {
  using _ = connectTo(trickle());
  const onConnect = () => standStill(200);
  assertEquals(await exchange({ timeout: 100, onConnect }), "x".repeat(10));
});

socketTest(
  "exchange: after a standstill, the time of a silent server is soon up",
  async () => {
    using listener = listen();
    const result = exchange({ port: listener.addr.port, timeout: 100 });
    using _connection = await listener.accept();
    standStill(200);
    const began = performance.now();
    await assertRejects(() => result, Deno.errors.TimedOut);
    assert(performance.now() - began < 1000);
  },
);

test("exchange: with a timeout of Infinity, there is no timer", async () => {
  using timer = timers();
  using _ = connectTo(new MemoryConnection({ reads: ["hello", null] }));
  assertEquals(await exchange({ timeout: Infinity }), "hello");
  assertEquals(timer.delays, []);
});

test("exchange: its time covers connecting", async () => {
  using _ = connecting(hang);
  await assertRejects(() => exchange({ timeout: 50 }), Deno.errors.TimedOut);
  // Waiting is for refused connections alone.
  await assertRejects(
    () => exchange({ timeout: 50, wait: 60_000 }),
    Deno.errors.TimedOut,
  );
});

// exchange: waiting for a server

socketTest(
  "exchange: with wait, it finds a server that starts late",
  async () => {
    const free = listen();
    const { port } = free.addr;
    free.close();
    const refused = Promise.withResolvers<void>();
    const connect = Deno.connect;
    using _ = connecting(async (options) => {
      try {
        return await connect(options);
      } catch (error) {
        refused.resolve();
        throw error;
      }
    });
    // Its time is shorter than the wait, and starts anew with each try.
    const greeting = exchange({ port, wait: 60_000, timeout: 5_000 });
    await refused.promise;
    await using _server = start({ port });
    assertEquals(await greeting, GREETING);
  },
);

test("exchange: its time does not run while it waits", async () => {
  let tries = 0;
  const peer = new MemoryConnection({ reads: ["hello", null] });
  using _ = connecting(() => {
    if (++tries > 3) return Promise.resolve(peer);
    return refused();
  });
  assertEquals(await exchange({ wait: 60_000, timeout: 40 }), "hello");
  assertEquals(tries, 4);
});

test("exchange: after a refusal, the next try has a deadline as well", async () => {
  let tries = 0;
  using _ = connecting((options) => {
    if (++tries > 1) return hang(options);
    return refused();
  });
  await assertRejects(
    () => exchange({ wait: 60_000, timeout: 50 }),
    Deno.errors.TimedOut,
  );
});

test("exchange: when the wait is over, a refusal is an error", async () => {
  let tries = 0;
  using _ = connecting(() => {
    tries++;
    return refused();
  });
  await assertRejects(() => exchange(), Deno.errors.ConnectionRefused);
  assertEquals(tries, 1);
  await assertRejects(
    () => exchange({ wait: 120 }),
    Deno.errors.ConnectionRefused,
  );
  assert(tries >= 3 && tries <= 5, `${tries} tries in 120 ms`);
});

test("exchange: a connection to itself is closed and counts as refused", async () => {
  const itself = new MemoryConnection();
  itself.localAddr = itself.remoteAddr;
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const connections = [itself, peer];
  using _ = connecting(() => Promise.resolve(connections.shift()!));
  const server: Deno.NetAddr[] = [];
  const onConnect = (address: Deno.NetAddr) => void server.push(address);
  assertEquals(await exchange({ wait: 60_000, onConnect }), "hello");
  assertEquals([itself.log, server.length], [["close"], 1]);

  connections.push(itself.again());
  await assertRejects(() => exchange(), Deno.errors.ConnectionRefused);
});

test("exchange: another host's same port is no connection to itself", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  peer.localAddr = { ...peer.remoteAddr, hostname: "::2" };
  using _ = connectTo(peer);
  assertEquals(await exchange(), "hello");
});

// exchange: callbacks and the end

test("exchange: it awaits its callbacks, and rejects with their errors", async () => {
  for (const name of ["onConnect", "onGreeting"] as const) {
    const peer = new MemoryConnection({ reads: ["hello", null] });
    using _ = connectTo(peer);
    const mine = async () => {
      await turn();
      throw new Error("mine");
    };
    await assertRejects(() => exchange({ [name]: mine }), Error, "mine");
    assertEquals(peer.log.includes("write"), false);
    assertEquals(peer.log.at(-1), "close");
  }
});

test("exchange: its time runs on during a callback, which ends before it rejects", async () => {
  for (const name of ["onConnect", "onGreeting"] as const) {
    const peer = new MemoryConnection({ reads: ["hello", null] });
    using _ = connectTo(peer);
    const go = Promise.withResolvers<void>();
    const order: string[] = [];
    const result = exchange({ timeout: 20, [name]: () => go.promise })
      .catch((error) => void order.push(error.name));
    while (!peer.log.includes("close")) await turn();
    order.push("closed");
    await turn();
    order.push("called back");
    go.resolve();
    await result;
    assertEquals(order, ["closed", "called back", "TimedOut"]);
  }
});

/** Where an exchange is when it is aborted: how to connect, and from where. */
const stages: Record<
  string,
  (abort: () => void) => {
    connect: (options: Deno.ConnectOptions) => Promise<Deno.TcpConn>;
    options?: Parameters<typeof exchange>[0];
  }
> = {
  "connecting": (abort) => ({
    connect: (options) => {
      setTimeout(abort);
      return hang(options);
    },
  }),
  "connected just now": (abort) => ({
    connect: () => {
      abort();
      return Promise.resolve(new MemoryConnection());
    },
  }),
  "waiting for a server": (abort) => ({
    connect: ({ signal }) => {
      signal!.throwIfAborted();
      setTimeout(abort);
      return refused();
    },
    options: { wait: 60_000 },
  }),
  "reading": (abort) => ({
    connect: () => Promise.resolve(new MemoryConnection()),
    options: { onConnect: () => void setTimeout(abort) },
  }),
  "writing": (abort) => ({
    connect: () =>
      Promise.resolve(
        new MemoryConnection({ reads: ["hi", null], write: never }),
      ),
    options: { onGreeting: () => void setTimeout(abort) },
  }),
};

for (const [stage, at] of Object.entries(stages)) {
  test(`exchange: aborted while ${stage}, it ends with the reason`, async () => {
    const reason = new Error("enough");
    const controller = new AbortController();
    const { connect, options } = at(() => controller.abort(reason));
    const connections: Deno.TcpConn[] = [];
    using _ = connecting(async (options) => {
      const connection = await connect(options);
      connections.push(connection);
      return connection;
    });
    const result = exchange({ ...options, signal: controller.signal });
    assertEquals(await result.catch((error) => error), reason);
    // It is closed, so another close is one too many.
    for (const connection of connections) {
      assertThrows(() => connection.close(), Deno.errors.BadResource);
    }
  });
}

test("exchange: aborted before, it does not connect", async () => {
  using _ = noSockets();
  const signal = AbortSignal.abort(new Error("too late"));
  await assertRejects(() => exchange({ signal }), Error, "too late");
});

test("exchange: one that has ended leaves nothing on its signal", async () => {
  const { signal, left } = watched();
  using _ = connectTo(new MemoryConnection({ reads: ["hello", null] }));
  const result = exchange({ signal });
  assertEquals(left.size, 1);
  await result;
  assertEquals(left.size, 0);
  await assertRejects(() => exchange({ signal }), Error);
  assertEquals(left.size, 0);
});

for (
  const { option, values, error } of [
    {
      option: "port",
      values: [0, -1, 1.5, 70_000, NaN, "8888"],
      error: RangeError,
    },
    {
      option: "timeout",
      values: [0, -1, NaN, -Infinity, 2_147_483_648, "10"],
      error: RangeError,
    },
    {
      option: "wait",
      values: [-1, NaN, Infinity, 2_147_483_648, "1"],
      error: RangeError,
    },
    {
      option: "maxGreetingBytes",
      values: [0, -1, 1.5, NaN, Infinity, 536_870_889],
      error: RangeError,
    },
    { option: "hostname", values: ["", 5, null], error: TypeError },
    { option: "reply", values: ["", 5, null], error: TypeError },
    { option: "signal", values: [{}], error: TypeError },
  ]
) {
  test(`exchange: a wrong ${option} is refused before it connects`, async () => {
    using _ = noSockets();
    const name = option === "signal" ? "" : option;
    for (const value of values) {
      await assertRejects(() => exchange({ [option]: value }), error, name);
    }
  });
}

test("exchange: its times are in milliseconds, and are said so", async () => {
  const message = "a number of milliseconds from 0, at most 2147483647, not -1";
  await assertRejects(() => exchange({ wait: -1 }), RangeError, message);
});

// server.ts

socketTest(
  "server.ts: it prints what happens, and on a signal it ends",
  async () => {
    const { port, line, handlers, result } = await startServer(
      {},
      "--timeout",
      "1",
    );
    const is = (port: number | undefined, words: string) =>
      new RegExp(`^127\\.0\\.0\\.1:${port} ${words}$`);

    await exchange({ port });
    const [first] = await line(/^127\.0\.0\.1:(\d+) connected$/);
    await line(is(Number(first), `replied: ${REPLY}`));

    using leaves = await Deno.connect({ port });
    await line(is(leaves.localAddr.port, "connected"));
    await leaves.closeWrite();
    await line(is(leaves.localAddr.port, "left without a reply"));

    const resets = await resetter(port);
    await line(is(resets.port, "connected"));
    await resets.reset();
    await line(is(resets.port, "reset the connection"));

    using talks = await Deno.connect({ port });
    await line(is(talks.localAddr.port, "connected"));
    await writeAll(talks, "x".repeat(LIMIT + 1));
    await line(is(talks.localAddr.port, "sent too long a reply"));

    using silent = await Deno.connect({ port });
    await line(is(silent.localAddr.port, "connected"));
    handlers.get("SIGINT")!();
    await line(/^Stopping: 1 client to finish$/);
    await line(is(silent.localAddr.port, "timed out"));
    await line(/^Served 5 clients$/);
    const { code, err } = await result();
    assertEquals([code, err], [0, []]);
  },
);

socketTest(
  "server.ts: on a signal, it says how many clients it finishes",
  async () => {
    const { port, out, line, handlers, result } = await startServer(
      {},
      "--quiet",
    );
    const windows = Deno.build.os === "windows";
    assertEquals(
      [...handlers.keys()],
      windows ? ["SIGINT"] : ["SIGINT", "SIGTERM"],
    );
    const signal = [...handlers.values()].at(-1)!;
    using first = await Deno.connect({ port });
    using second = await Deno.connect({ port });
    await readAll(first);
    await readAll(second);
    signal();
    await line(/^Stopping: 2 clients to finish$/);
    await first.closeWrite();
    await second.closeWrite();
    assertEquals((await result()).code, 0);
    assertEquals(out.all.slice(1), [
      "Stopping: 2 clients to finish",
      "Served 2 clients",
    ]);
  },
);

socketTest(
  "server.ts: a second signal cuts the clients off, with 130",
  async () => {
    const { port, line, handlers, result } = await startServer({});
    using silent = await Deno.connect({ port });
    await line(/ connected$/);
    handlers.get("SIGINT")!();
    await line(/^Stopping: 1 client to finish$/);
    handlers.get("SIGINT")!();
    await line(new RegExp(`:${silent.localAddr.port} cut off$`));
    await line(/^Served 1 client$/);
    assertEquals((await result()).code, 130);
  },
);

for (
  const { how, args, code } of [
    { how: "serves on", args: [], code: 0 },
    { how: "serves once", args: ["--once"], code: 1 },
  ]
) {
  test(`server.ts: stopped without a client, one that ${how} exits ${code}`, async () => {
    using _ = listening(() => new MemoryListener([]));
    const { line, handlers, result } = run(serverMain, ...args);
    await line(/^Listening on \[::1\]:8$/);
    handlers.get("SIGINT")!();
    assertEquals(await result(), {
      code,
      out: [
        "Listening on [::1]:8",
        "Stopping: 0 clients to finish",
        "Served 0 clients",
      ],
      err: [],
    });
  });
}

test("server.ts: it listens to the stop signals before it says that it listens", async () => {
  using _ = listening(() => new MemoryListener([]));
  const command = runWith({
    stdout: (bytes) => {
      assertEquals(command.handlers.size > 0, true);
      return bytes.length;
    },
  }, serverMain);
  await command.line(/^Listening/);
  command.handlers.get("SIGINT")!();
  assertEquals((await command.result()).code, 0);
});

for (
  const { words, code, behaviour, args = [] } of [
    { words: "replied: hello", code: 0, behaviour: { reads: ["hello", null] } },
    { words: "left without a reply", code: 0, behaviour: { reads: [null] } },
    {
      words: "timed out",
      code: 1,
      behaviour: {},
      args: ["--timeout", "0.02"],
    },
    {
      words: "reset the connection",
      code: 1,
      behaviour: { reads: [new Deno.errors.ConnectionReset("")] },
    },
    {
      words: "sent too long a reply",
      code: 1,
      behaviour: { reads: ["x".repeat(LIMIT + 1)] },
    },
  ] as { words: string; code: number; behaviour: Behaviour; args?: string[] }[]
) {
  test(`server.ts: with --once, a client that ${words} makes the exit code ${code}`, async () => {
    for (const quiet of [false, true]) {
      const peers = [0, 1].map(() => {
        return new MemoryConnection(behaviour);
      });
      const listener = new MemoryListener(peers);
      using _ = listening(() => listener);
      const command = run(
        serverMain,
        "--once",
        ...args,
        ...quiet ? ["-q"] : [],
      );
      const lines = [`[::1]:7 connected`, `[::1]:7 ${words}`];
      assertEquals(await command.result(), {
        code,
        out: ["Listening on [::1]:8", ...quiet ? [] : lines, "Served 1 client"],
        err: [],
      });
      assertEquals(listener.accepted, 1);
    }
  });
}

test("server.ts: a shortage is one line on stderr", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const full = () => shortage("Too many open files (os error 24)");
  const listener = new MemoryListener([full(), full(), peer]);
  using _ = listening(() => listener);
  const { code, out, err } = await run(serverMain, "--once").result();
  assertEquals([code, out.at(-1), err.length], [0, "Served 1 client", 1]);
  assertMatch(err[0]!, /^error: .*: Too many open files \(os error 24\)$/);
});

test("server.ts: flags reach Deno.listen, and the last of a repeated one counts", async () => {
  const asked: unknown[] = [];
  using _ = listening((options) => {
    asked.push(options);
    return fail(new Deno.errors.AddrInUse("in use"));
  });
  await run(serverMain).result();
  await run(serverMain, "--host=::1", "-p", "1", "--port", "08080").result();
  assertEquals(asked, [
    { hostname: "127.0.0.1", port: 8888, tcpBacklog: 4096 },
    { hostname: "::1", port: 8080, tcpBacklog: 4096 },
  ]);
});

test("server.ts: --max-clients bounds how many are served at once", async () => {
  const go = Promise.withResolvers<number>();
  const write = () => go.promise;
  const peers = ["one", "two"].map((reply) =>
    new MemoryConnection({ reads: [reply, null], write })
  );
  const listener = new MemoryListener(peers);
  using _ = listening(() => listener);
  const { out, line, handlers, result } = run(serverMain, "--max-clients=1");
  await line(/^Listening/);
  await line(/ connected$/);
  await turn(); // in which the second could have been accepted
  assertEquals(listener.accepted, 1);
  go.resolve(encode(GREETING).length);
  await line(/ replied: one$/);
  await line(/ connected$/);
  await line(/ replied: two$/);
  handlers.get("SIGINT")!();
  assertEquals([(await result()).code, out.all.at(-1)], [
    0,
    "Served 2 clients",
  ]);
});

for (
  const { what, error, args, pattern } of [
    {
      what: "a port in use",
      error: new Deno.errors.AddrInUse(""),
      args: [],
      pattern: /^error: 127\.0\.0\.1:8888 .* --port/,
    },
    {
      what: "a port in use on ::1",
      error: new Deno.errors.AddrInUse(""),
      args: ["--host=::1"],
      pattern: /^error: \[::1\]:8888 /,
    },
    {
      what: "a port in use on [::1]",
      error: new Deno.errors.AddrInUse(""),
      args: ["--host=[::1]"],
      pattern: /^error: \[::1\]:8888 /,
    },
    {
      what: "a port that is not allowed",
      error: new Deno.errors.PermissionDenied(""),
      args: ["-p80"],
      pattern: / 127\.0\.0\.1:80; .* --port/,
    },
    {
      what: "an address of another machine",
      error: new Deno.errors.AddrNotAvailable(""),
      args: ["--host=192.0.2.1"],
      pattern: / 192\.0\.2\.1:8888 .* --host/,
    },
    {
      what: "a missing permission",
      error: new Deno.errors.NotCapable(""),
      args: [],
      pattern: /with --allow-net=127\.0\.0\.1:8888$/,
    },
    {
      what: "an unknown name",
      error: new Error("failed to look up"),
      args: ["--host=no.such"],
      pattern: / no\.such:8888: failed to look up$/,
    },
  ]
) {
  test(`server.ts: ${what} is one line with the way out`, async () => {
    assertMatch(await said(serverMain, error, ...args), pattern);
  });
}

socketTest(
  "server.ts: a port in use for real is an error that names it",
  async () => {
    using listener = listen();
    const { port } = listener.addr;
    const { code, err } = await run(serverMain, "--port", `${port}`).result();
    assertEquals([code, err.length], [1, 1]);
    assertMatch(
      err[0]!,
      new RegExp(`^error: 127\\.0\\.0\\.1:${port} is in use; .* --port`),
    );
  },
);

// server.ts: its lines

test("server.ts: a reader that stalls stops neither service nor signals", async () => {
  const peers = [0, 1, 2].map(() =>
    new MemoryConnection({ reads: ["hello", null] })
  );
  const listener = new MemoryListener(peers);
  using _ = listening(() => listener);
  const reader = Promise.withResolvers<void>();
  const command = runWith({
    stdout: async (bytes) => {
      await reader.promise;
      return bytes.length;
    },
  }, serverMain);
  while (peers.some(({ log }) => !log.includes("close"))) await turn();
  command.handlers.get("SIGINT")!();
  reader.resolve();
  const { code, out } = await command.result();
  assertEquals([code, out.length, out.at(-1)], [0, 9, "Served 3 clients"]);
});

test("server.ts: beyond a mebibyte that waits, lines are dropped and counted", async () => {
  const replies = Array.from({ length: 20 }, (_, i) => `${i}`.padEnd(60_000));
  const peers = replies.map((reply) =>
    new MemoryConnection({ reads: [reply, null] })
  );
  const listener = new MemoryListener(peers);
  using _ = listening(() => listener);
  const reader = Promise.withResolvers<void>();
  const command = runWith(
    {
      stdout: async (bytes) => {
        await reader.promise;
        return bytes.length;
      },
    },
    serverMain,
    "--max-clients=1",
  );
  while (peers.some(({ log }) => !log.includes("close"))) await turn();
  reader.resolve();
  const lines = [];
  do lines.push(await command.out.next()); while (
    !/dropped/.test(lines.at(-1)!)
  );
  command.handlers.get("SIGINT")!();
  const { code, out } = await command.result();
  assertEquals(code, 0);
  const whole = replies.slice(0, 17).flatMap((reply) => [
    "[::1]:7 connected",
    `[::1]:7 replied: ${reply}`,
  ]);
  assertEquals(out, [
    "Listening on [::1]:8",
    ...whole,
    ...Array(3).fill("[::1]:7 connected"),
    "3 lines dropped",
    "Stopping: 0 clients to finish",
    "Served 20 clients",
  ]);
});

/** A server that is told to stop while its lines meet this reader. */
async function stopped(
  stdout: (bytes: Uint8Array) => number | Promise<number>,
) {
  using _ = listening(() => new MemoryListener([]));
  const command = runWith({ stdout }, serverMain);
  await turn();
  command.handlers.get("SIGINT")!();
  await turn();
  return command;
}

test("server.ts: at its end it gives a reader up who takes nothing for a second", async () => {
  const began = performance.now();
  const { result, handlers } = await stopped(never);
  assert(handlers.size > 0, "it still listens to signals");
  assertEquals((await result()).code, 0);
  const took = performance.now() - began;
  assert(took >= 900 && took < 5000, `${took} ms`);
});

test("server.ts: at its end it waits for a reader who is slow", async () => {
  const { result } = await stopped(async (bytes) => {
    await new Promise((resolve) => setTimeout(resolve, 600));
    return Math.min(bytes.length, 40);
  });
  const { code, out } = await result();
  assertEquals([code, out], [0, [
    "Listening on [::1]:8",
    "Stopping: 0 clients to finish",
    "Served 0 clients",
  ]]);
});

test("server.ts: after a second signal, lines that are taken at once still come", async () => {
  const silent = new MemoryConnection();
  using _ = listening(() => new MemoryListener([silent]));
  const { line, handlers, result } = runWith({
    stdout: async (bytes) => {
      await turn();
      return bytes.length;
    },
  }, serverMain);
  await line(/^Listening/);
  await line(/ connected$/);
  handlers.get("SIGINT")!();
  handlers.get("SIGINT")!();
  const { code, out } = await result();
  assertEquals([code, out.slice(2)], [130, [
    "Stopping: 1 client to finish",
    "[::1]:7 cut off",
    "Served 1 client",
  ]]);
});

test("server.ts: a second signal waits for no reader", async () => {
  const { result, handlers } = await stopped(never);
  const began = performance.now();
  handlers.get("SIGINT")!();
  assertEquals((await result()).code, 130);
  assert(performance.now() - began < 900);
});

test("server.ts: a first signal waits for no reader where all is done", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  using _ = listening(() => new MemoryListener([peer]));
  const command = runWith({ stdout: never }, serverMain, "--once");
  while (!peer.log.includes("close")) await turn();
  await turn();
  const began = performance.now();
  command.handlers.get("SIGINT")!();
  assertEquals((await command.result()).code, 130);
  assert(performance.now() - began < 900);
});

test("server.ts: lines that were written make room for more", async () => {
  const reply = "x".repeat(60_000);
  const peers = Array.from({ length: 40 }, () => new MemoryConnection());
  using _ = listening(() => new MemoryListener(peers));
  const command = run(serverMain);
  for (const peer of peers) {
    peer.gets(reply, null);
    await command.shows(`[::1]:7 replied: ${reply}`);
  }
  command.handlers.get("SIGINT")!();
  const { code, out } = await command.result();
  assertEquals([code, out.length], [0, 83]);
});

test("server.ts: a line that can't be written is lost, and nothing else is", async () => {
  const go = Promise.withResolvers<number>();
  const peer = new MemoryConnection({
    reads: ["hello", null],
    write: () => go.promise,
  });
  using _ = listening(() => new MemoryListener([peer]));
  let log = "";
  const { result } = runWith(
    {
      stdout: (bytes) => {
        const text = new TextDecoder().decode(bytes);
        if (!text.includes("connected")) {
          return void (log += text), bytes.length;
        }
        // The disk is full in the middle of this line.
        log += text.slice(0, 5);
        go.resolve(encode(GREETING).length);
        return fail(new Error("no space left"));
      },
    },
    serverMain,
    "--once",
  );
  assertEquals((await result()).code, 0);
  assertEquals(log.split("\n"), [
    "Listening on [::1]:8",
    "[::1]",
    "[::1]:7 replied: hello",
    "Served 1 client",
    "",
  ]);
});

// client.ts

socketTest("client.ts: it prints each line as it happens", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const { line, out, result } = run(clientMain, "--port", `${port}`);
  using connection = await listener.accept();
  await line(new RegExp(`^Connected to 127\\.0\\.0\\.1:${port}$`));
  await writeAll(connection, "hello");
  assertEquals(out.all.length, 1);
  await connection.closeWrite();
  await line(/^Greeting: hello$/);
  assertEquals(await readAll(connection), REPLY);
  await line(new RegExp(`^Replied: ${REPLY}$`));
  assertEquals((await result()).code, 0);
});

test("client.ts: it shows its own reply on one line, too", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  using _ = connectTo(peer);
  const { out } = await run(clientMain, "--reply=a\nb").result();
  assertEquals(out.at(-1), "Replied: a\\nb");
  assertEquals(new Uint8Array(peer.sent), encode("a\nb"));
});

test("client.ts: --wait is in seconds", async () => {
  let tries = 0;
  using _ = connecting(() => {
    const peer = new MemoryConnection({ reads: ["hello", null] });
    if (++tries === 2) return Promise.resolve(peer);
    return refused();
  });
  assertEquals((await run(clientMain, "--wait=60").result()).code, 0);
  assertEquals(tries, 2);
  assertEquals((await run(clientMain, "--wait=0.001").result()).code, 1);
  assert(tries <= 4, `${tries} tries`);
});

for (
  const { what, error, pattern } of [
    {
      what: "a refusal",
      error: new Deno.errors.ConnectionRefused(""),
      pattern: /^error: nothing listens on 127\.0\.0\.1:8888; .* --wait/,
    },
    {
      what: "a server that takes too long",
      error: new Deno.errors.TimedOut(""),
      pattern: /^error: 127\.0\.0\.1:8888 took too long; .* --timeout/,
    },
    {
      what: "a missing permission",
      error: new Deno.errors.NotCapable(""),
      pattern: /^error: .* 127\.0\.0\.1:8888; .*--allow-net=127\.0\.0\.1:8888$/,
    },
    {
      what: "an unknown name",
      error: new Error("failed to look up"),
      pattern: /^error: .* 127\.0\.0\.1:8888: failed to look up$/,
    },
    ...[
      Deno.errors.BrokenPipe,
      Deno.errors.ConnectionAborted,
      Deno.errors.ConnectionReset,
      Deno.errors.NotConnected,
    ].map((type) => ({
      what: type.name,
      error: new type(""),
      pattern: /^error: 127\.0\.0\.1:8888 reset the connection$/,
    })),
  ]
) {
  test(`client.ts: ${what} is one line with the way out`, async () => {
    assertMatch(await said(clientMain, error), pattern);
  });
}

socketTest(
  "client.ts: what goes wrong with a real server is one line that names it",
  async () => {
    using listener = listen();
    const { port } = listener.addr;
    const at = `127\\.0\\.0\\.1:${port}`;
    const failing = async (pattern: RegExp, ...args: string[]) => {
      const { code, err } = await run(clientMain, "-qp", `${port}`, ...args)
        .result();
      assertEquals([code, err.length], [1, 1]);
      assertMatch(err[0]!, pattern);
    };
    const serving = async (greeting: string) => {
      using connection = await listener.accept();
      await writeAll(connection, greeting);
    };

    await Promise.all([
      serving(""),
      failing(new RegExp(`^error: ${at} closed without a greeting$`)),
    ]);
    await Promise.all([
      serving("x".repeat(LIMIT + 1)),
      failing(
        new RegExp(`^error: ${at} sent a greeting longer than 65536 bytes$`),
      ),
    ]);
    await failing(
      new RegExp(`^error: ${at} took too long; `),
      "--timeout=0.05",
    );
    (await listener.accept()).close();

    const resets = createServer((socket) => socket.resetAndDestroy());
    await new Promise<void>((done) => resets.listen(0, "127.0.0.1", done));
    const { port: other } = resets.address() as { port: number };
    await failing(
      new RegExp(`^error: 127\\.0\\.0\\.1:${other} reset the connection$`),
      `--port=${other}`,
    );
    await new Promise((done) => resets.close(done));

    listener[Symbol.dispose]();
    await failing(new RegExp(`^error: nothing listens on ${at}; `));
  },
);

test("client.ts: it waits until its lines are out", async () => {
  using _ = connectTo(new MemoryConnection({ reads: ["hello", null] }));
  const { result } = runWith({
    stdout: async (bytes) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return bytes.length;
    },
  }, clientMain);
  const { code, out } = await result();
  assertEquals([code, out], [0, [
    "Connected to [::1]:7",
    "Greeting: hello",
    `Replied: ${REPLY}`,
  ]]);
});

test("client.ts: its error comes after its lines", async () => {
  using _ = connectTo(new MemoryConnection({ reads: [null] }));
  const order: string[] = [];
  const { result } = runWith({
    stdout: async (bytes) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      order.push("line");
      return bytes.length;
    },
    stderr: () => order.push("error"),
  }, clientMain);
  assertEquals([(await result()).code, order], [1, ["line", "error"]]);
});

for (const args of [[], ["--quiet"]]) {
  test(`client.ts${args.map((arg) => ` ${arg}`)}: lines that can't be written are an error, after the exchange`, async () => {
    const peer = new MemoryConnection({ reads: ["hello", null] });
    using _ = connectTo(peer);
    const { result } = runWith(
      {
        stdout: () => fail(new Error("No space left on device (os error 28)")),
      },
      clientMain,
      ...args,
    );
    const { code, out, err } = await result();
    assertEquals([code, out, err], [1, [], [
      "error: cannot print: No space left on device (os error 28)",
    ]]);
    assertEquals(new Uint8Array(peer.sent), encode(REPLY));
  });
}

// Both commands: what stands in both scripts

/** Runs one of the commands so that it prints this text of a peer. */
const printing = {
  "server.ts": (reads: string[], setup: Setup = {}) => {
    const peer = new MemoryConnection({ reads: [...reads, null] });
    const replaced = listening(() => new MemoryListener([peer]));
    const { result } = runWith(setup, serverMain, "--once");
    return { result, replaced, before: "[::1]:7 replied: " };
  },
  "client.ts": (reads: string[], setup: Setup = {}) => {
    const replaced = connectTo(
      new MemoryConnection({ reads: [...reads, null] }),
    );
    const { result } = runWith(setup, clientMain, "--quiet");
    return { result, replaced, before: "" };
  },
};

const NASTY =
  "a\tb\r\n\x00\x07\x1b[2J\x7f\x85\x9b\u2028\u2029\u200e\u200f\u061c" +
  "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069好 👋\\";
const HARMLESS = "a\\tb\\r\\n\\u0000\\u0007\\u001b[2J\\u007f\\u0085\\u009b" +
  "\\u2028\\u2029\\u200e\\u200f\\u061c\\u202a\\u202b\\u202c\\u202d\\u202e" +
  "\\u2066\\u2067\\u2068\\u2069好 👋\\";

for (const [script, print] of Object.entries(printing)) {
  for (
    const { what, text, shown } of [
      { what: "that drives a terminal", text: NASTY, shown: HARMLESS },
      { what: "with a line end", text: "hi\n", shown: "hi" },
      { what: "with the line end of telnet", text: "hi\r\n", shown: "hi" },
      { what: "that is a line end", text: "\n", shown: "" },
      { what: "with two line ends", text: "hi\n\n", shown: "hi\\n" },
      { what: "with a carriage return", text: "hi\r", shown: "hi\\r" },
    ]
  ) {
    test(`${script}: a peer's text ${what} is shown harmless`, async () => {
      const { result, replaced, before } = print([text]);
      using _ = replaced;
      assert((await result()).out.includes(before + shown));
    });
  }

  test(`${script}: a long text is written in pieces of at most 4096 bytes`, async () => {
    const pieces: Uint8Array[] = [];
    const text = "好".repeat(20_000);
    const { result, replaced, before } = print([text], {
      stdout: (bytes) => {
        pieces.push(bytes.slice());
        return bytes.length;
      },
    });
    using _ = replaced;
    assert((await result()).out.includes(before + text));
    for (const piece of pieces) {
      assert(piece.length <= 4096, `${piece.length} bytes`);
      // Smaller ones end in a line end, and no piece cuts a character.
      if (piece.length < 4090) assertEquals(piece.at(-1), 0x0a);
      new TextDecoder("utf-8", { fatal: true }).decode(piece);
    }
  });

  test(`${script}: where stdout would block, each line comes once`, async () => {
    let tries = 0;
    const text = "x".repeat(10_000);
    const { result, replaced, before } = print([text], {
      stdout: (bytes) =>
        ++tries % 3 ? fail(new Deno.errors.WouldBlock("")) : bytes.length,
    });
    using _ = replaced;
    const { code, out } = await result();
    assertEquals(code, 0);
    assertEquals(out.filter((line) => line === before + text).length, 1);
    assertEquals(new Set(out).size, out.length);
  });

  test(`${script}: where stdout takes a part, each line comes once`, async () => {
    const { result, replaced, before } = print(["hello"], {
      stdout: (bytes) => Math.min(3, bytes.length),
    });
    using _ = replaced;
    const { code, out } = await result();
    assertEquals(code, 0);
    assertEquals(out.filter((line) => line === `${before}hello`).length, 1);
  });
}

/** The flags of each command, with their defaults. */
const commands = {
  "server.ts": {
    main: serverMain,
    flags: {
      host: "127.0.0.1",
      port: "8888",
      greeting: GREETING,
      timeout: "10",
      "max-clients": "1024",
      once: "off",
      quiet: "off",
      help: "off",
    },
  },
  "client.ts": {
    main: clientMain,
    flags: {
      host: "127.0.0.1",
      port: "8888",
      reply: REPLY,
      timeout: "10",
      wait: "0",
      quiet: "off",
      help: "off",
    },
  },
};

/** A wrong command line, and what the error must name. */
interface Wrong {
  args: string[];
  names: string[];
}

const wrongValues = (flag: string, ...values: string[]): Wrong[] =>
  values.map((value) => ({
    args: [`${flag}=${value}`],
    names: [flag, `not "${value}"`],
  }));

const takesNoValue = (flag: string, ...lines: string[][]): Wrong[] =>
  lines.map((args) => ({ args, names: [`${flag} takes no value`] }));

const tooLong = (flag: string): Wrong[] => [
  {
    args: [`${flag}=${"x".repeat(LIMIT + 1)}`],
    names: [flag, "at most 65536 bytes, not 65537"],
  },
  {
    args: [`${flag}=${"好".repeat(21_846)}`],
    names: [flag, "at most 65536 bytes, not 65538"],
  },
];

const wrong: Wrong[] = [
  { args: ["--bogus"], names: ['"--bogus"'] },
  { args: ["--bogus=1"], names: ['"--bogus=1"'] },
  { args: ["--constructor"], names: ['"--constructor"'] },
  { args: ["--toString"], names: ['"--toString"'] },
  { args: ["--__proto__=1"], names: ['"--__proto__=1"'] },
  { args: ["-x"], names: ['"-x"'] },
  { args: ["-qx"], names: ['"-qx"'] },
  { args: ["--no-quiet"], names: ['"--no-quiet"'] },
  { args: ["stray"], names: ['"stray"'] },
  { args: ["-"], names: ['"-"'] },
  { args: [""], names: ['""'] },
  { args: ["--", "stray"], names: ['"stray"'] },
  { args: ["--", "--quiet"], names: ['"--quiet"'] },
  { args: ["--", "--quiet=no"], names: ['"--quiet=no"'] },
  { args: ["bad\n\x1b[2J"], names: ['"bad\\n\\u001b[2J"'] },
  { args: ["--port"], names: ["--port"] },
  { args: ["--port="], names: ["--port"] },
  { args: ["-p"], names: ["--port"] },
  { args: ["--host"], names: ["--host"] },
  { args: ["--host", ""], names: ["--host"] },
  { args: ["--host="], names: ["--host"] },
  { args: ["--timeout"], names: ["--timeout"] },
  { args: ["--timeout", "-1"], names: ["--timeout"] },
  ...wrongValues("--port", "x", "1.5", "-1", "65536", "1e3", "0x50", " 80"),
  ...wrongValues("--timeout", "0", "-1", "x", "NaN", "Infinity", "2147484"),
  ...wrongValues("--timeout", " ", "1s", "0x10", " 5", "1e1", "+5"),
  ...takesNoValue(
    "--quiet",
    ["--quiet=no"],
    ["--quiet=0"],
    ["--quiet=banana"],
    ["--quiet=true"],
    ["--quiet="],
    ["--quiet", "false"],
    ["-q=false"],
    ["-q9"],
    ["-q", "true"],
    ["-qp9000"],
    ["-qh1"],
    ["--q=no"],
  ),
  ...takesNoValue("--help", ["--help=no"], ["-h=1"], ["-h1"]),
];

const wrongFor = {
  "server.ts": [
    ...wrong,
    { args: ["--greeting"], names: ["--greeting"] },
    { args: ["--greeting", "--once"], names: ["--greeting"] },
    { args: ["--greeting="], names: ["--greeting"] },
    { args: ["--reply=hi"], names: ['"--reply=hi"'] },
    ...tooLong("--greeting"),
    ...takesNoValue("--once", ["--once=yes"], ["--once", "true"]),
    ...wrongValues("--max-clients", "0", "-1", "1.5", "x", "1e3"),
  ],
  "client.ts": [
    ...wrong,
    { args: ["--reply"], names: ["--reply"] },
    { args: ["--reply="], names: ["--reply"] },
    { args: ["--once"], names: ['"--once"'] },
    ...tooLong("--reply"),
    ...wrongValues("--port", "0"),
    ...wrongValues("--wait", "-1", "x", "NaN", "Infinity", "2147484", " "),
    ...wrongValues("--wait", "0x10", " 5", "1e1", "+5"),
  ],
};

for (const [script, { main, flags }] of Object.entries(commands)) {
  for (const { args, names } of wrongFor[script as keyof typeof wrongFor]) {
    const line = JSON.stringify(args).slice(0, 40);
    test(`${script}: ${line} is a wrong command line`, async () => {
      using _ = noSockets();
      const { code, out, err } = await run(main, ...args).result();
      assertEquals([code, out, err.length], [2, [], 1]);
      assertMatch(err[0]!, /^error: .*; see --help$/);
      for (const name of names) {
        assert(err[0]!.includes(name), `${err[0]} should name ${name}`);
      }
    });
  }

  for (
    const args of [
      ["--help"],
      ["-h"],
      ["-qh"],
      ["-h", "--bogus", "--port=x"],
      ["--quiet=no", "--help"],
      ["--help=no", "--help"],
    ]
  ) {
    test(`${script}: ${args.join(" ")} shows the help, with every default`, async () => {
      using _ = noSockets();
      const { code, out, err } = await run(main, ...args).result();
      assertEquals([code, err], [0, []]);
      const help = out.join("\n");
      for (const part of ["usage", "example"]) {
        const command = `${part}: deno run --allow-net ${script}`;
        assert(help.includes(command), command);
      }
      for (const [flag, value] of Object.entries(flags)) {
        const line = out.find((line) => line.startsWith(`  --${flag}`));
        assert(line?.endsWith(`(${value})`), `${flag}: ${line}`);
      }
    });
  }

  test(`${script}: a text of 65536 bytes is taken`, async () => {
    const flag = script === "server.ts" ? "--greeting" : "--reply";
    const error = await said(
      main,
      new Error("asked"),
      `${flag}=${"x".repeat(LIMIT)}`,
    );
    assertMatch(error, /: asked$/);
  });

  for (
    const { args, delay } of [
      { args: [], delay: 10_000 },
      { args: ["--timeout=2.5"], delay: 2500 },
    ]
  ) {
    test(`${script} ${args}: its time is ${delay} ms`, async () => {
      const peer = () => new MemoryConnection({ reads: ["hello", null] });
      using timer = timers();
      using _listen = listening(() => new MemoryListener([peer()]));
      using _connect = connectTo(peer());
      const once = script === "server.ts" ? ["--once"] : [];
      await run(main, ...once, ...args).result();
      assertEquals(Math.max(...timer.delays), delay);
    });
  }

  test(`${script}: an error that can't be written changes no exit code`, async () => {
    const { result } = runWith(
      {
        stderr: () => fail(new Error("no space left")),
      },
      main,
      "--bogus",
    );
    assertEquals((await result()).code, 2);
  });

  socketTest(
    `${script}: a host that can't be found is an error that names it`,
    async () => {
      const { code, err } = await run(main, "--host", "no.such.host.invalid")
        .result();
      assertEquals([code, err.length], [1, 1]);
      assertMatch(err[0]!, /^error: .*no\.such\.host\.invalid:8888/);
    },
  );
}

// Both commands: --talk

/** A command in a talk with a peer in memory, and what it prints around it. */
const talks = {
  "server.ts": (behaviour: Behaviour, setup: Setup = {}, ...args: string[]) => {
    const peer = new MemoryConnection(behaviour);
    const listener = new MemoryListener([peer]);
    const replaced = listening(() => listener);
    const command = runWith(setup, serverMain, "--talk", ...args);
    return { ...command, peer, [Symbol.dispose]: replaced[Symbol.dispose] };
  },
  "client.ts": (behaviour: Behaviour, setup: Setup = {}, ...args: string[]) => {
    const reads = ["hello\n", ...behaviour.reads ?? []];
    const peer = new MemoryConnection({ ...behaviour, reads });
    const replaced = connectTo(peer);
    const command = runWith(setup, clientMain, "--talk", ...args);
    return { ...command, peer, [Symbol.dispose]: replaced[Symbol.dispose] };
  },
};

const around = {
  "server.ts": {
    before: ["Listening on [::1]:8", "[::1]:7 connected"],
    quiet: ["Listening on [::1]:8"],
    after: ["Served 1 client"],
    sent: `${GREETING}\n`,
  },
  "client.ts": {
    before: ["Connected to [::1]:7", "Greeting: hello", `Replied: ${REPLY}`],
    quiet: ["hello"],
    after: [],
    sent: `${REPLY}\n`,
  },
};

for (const [script, startTalk] of Object.entries(talks)) {
  const { before, quiet, after, sent } = around[script as keyof typeof around];
  const lineOf = (line: string) => `[::1]:7: ${line}`;

  for (
    const { what, reads, lines } of [
      { what: "lines", reads: ["one\ntwo\n"], lines: ["one", "two"] },
      {
        what: "lines in pieces",
        reads: ["o", "ne\nt", "wo\n"],
        lines: ["one", "two"],
      },
      {
        what: "lines of telnet",
        reads: ["one\r\n", "two\r", "\n"],
        lines: ["one", "two"],
      },
      { what: "empty lines", reads: ["\n\r\n\n"], lines: ["", "", ""] },
      {
        what: "a last line without an end",
        reads: ["one\nt", "wo"],
        lines: ["one", "two"],
      },
      {
        what: "characters split over reads",
        reads: Array.from(encode(`${TEXT}\n`), (byte) => Uint8Array.of(byte)),
        lines: [TEXT],
      },
      {
        what: "bytes that are not UTF-8",
        reads: [Uint8Array.of(0xff, 0x41, 0x0a, 0xe4), "\nB\n"],
        lines: ["\uFFFDA", "\uFFFD", "B"],
      },
      {
        what: "text that drives a terminal",
        reads: ["\x1b[2J\r\r\n\uFEFFa\u2028b\n"],
        lines: ["\\u001b[2J\\r", "\uFEFFa\\u2028b"],
      },
      {
        what: "a line of 64 KiB",
        reads: ["x".repeat(LIMIT), "\n", "after\n"],
        lines: ["x".repeat(LIMIT), "after"],
      },
      {
        what: "a line of 64 KiB of telnet",
        reads: ["x".repeat(LIMIT), "\r", "\n", "after\n"],
        lines: ["x".repeat(LIMIT), "after"],
      },
      {
        what: "a line of 64 KiB and a byte",
        reads: ["x".repeat(LIMIT + 1), "\nafter\n"],
        lines: ["x".repeat(LIMIT), "x", "after"],
      },
      {
        what: "a longer line with a carriage return in it",
        reads: ["x".repeat(LIMIT), "\rx\n"],
        lines: ["x".repeat(LIMIT), "\\rx"],
      },
      {
        what: "a line without an end that is far longer",
        reads: ["x".repeat(3 * LIMIT + 5)],
        lines: [...Array(3).fill("x".repeat(LIMIT)), "xxxxx"],
      },
      ...["a", "ab", ""].map((shift) => ({
        what: `characters of 3 bytes at the cut, after "${shift}"`,
        reads: [shift + "好".repeat(30_000) + "\n"],
        lines: [
          shift + "好".repeat(Math.floor((LIMIT - shift.length) / 3)),
          "好".repeat(30_000 - Math.floor((LIMIT - shift.length) / 3)),
        ],
      })),
      ...["a", "ab", "abc"].map((shift) => ({
        what: `characters of 4 bytes at the cut, after "${shift}"`,
        reads: [shift + "👋".repeat(20_000) + "\n"],
        lines: [shift + "👋".repeat(16_383), "👋".repeat(3_617)],
      })),
    ]
  ) {
    test(`${script} --talk: it shows ${what}`, async () => {
      using talk = startTalk({ reads: [...reads, null] });
      assertEquals(await talk.result(), {
        code: 0,
        out: [...before, ...lines.map(lineOf), "[::1]:7 ended", ...after],
        err: [],
      });
    });
  }

  test(`${script} --talk --quiet: it prints the peer's lines alone`, async () => {
    using talk = startTalk({ reads: ["one\ntwo", null] }, {}, "--quiet");
    assertEquals(await talk.result(), {
      code: 0,
      out: [...quiet, "one", "two"],
      err: [],
    });
  });

  for (
    const { what, input, bytes } of [
      { what: "nothing", input: [null], bytes: "" },
      { what: "a line", input: ["one\n", null], bytes: "one\n" },
      {
        what: "pieces, whatever they hold",
        input: [Uint8Array.of(0xff), "o\r", "ne\n\ntwo\n", null],
        bytes: [0xff, ...encode("o\rne\n\ntwo\n")],
      },
      {
        what: "a line without an end",
        input: ["one\ntw", "o", null],
        bytes: "one\ntwo\n",
      },
      {
        what: "what came before an error",
        input: ["one\n", new Error("Is a directory")],
        bytes: "one\n",
      },
    ] as { what: string; input: Input[]; bytes: string | number[] }[]
  ) {
    test(`${script} --talk: from stdin it sends ${what}, and half-closes`, async () => {
      const go = Promise.withResolvers<void>();
      using talk = startTalk({ closeWrite: () => go.resolve() }, { input });
      await go.promise;
      const expected = typeof bytes === "string" ? encode(bytes) : bytes;
      assertEquals(talk.peer.sent, [...encode(sent), ...expected]);
      talk.peer.gets("still shown\n", null);
      const { code, out } = await talk.result();
      assertEquals([code, out], [0, [
        ...before,
        lineOf("still shown"),
        "[::1]:7 ended",
        ...after,
      ]]);
    });
  }

  test(`${script} --talk: a stdin of large pieces is sent whole where a write takes a part`, async () => {
    const large = "0123456789abcde\n".repeat(10_000);
    using talk = startTalk({
      reads: [null],
      write: (bytes) => Math.ceil(bytes.length / 2),
    }, { input: [large, null] });
    await talk.result();
    assertEquals(
      new TextDecoder().decode(new Uint8Array(talk.peer.sent)),
      sent + large,
    );
  });

  test(`${script} --talk: where lines can't be written, it ends with 1`, async () => {
    using talk = startTalk({ reads: ["one\n"] }, {
      input: [],
      stdout: (bytes) =>
        new TextDecoder().decode(bytes).includes(": one")
          ? fail(new Deno.errors.BrokenPipe("nobody reads"))
          : bytes.length,
    });
    const { code, err } = await talk.result();
    assertEquals([code, err], [1, ["error: cannot print: nobody reads"]]);
    assertEquals(talk.peer.log.at(-1), "close");
  });

  test(`${script} --talk: neither has to wait for its turn`, async () => {
    using talk = startTalk({}, { input: ["mine\n"] });
    talk.peer.gets("first\n");
    await talk.shows(lineOf("first"));
    while (talk.peer.sent.length < encode(`${sent}mine\n`).length) await turn();
    talk.input.gets("more\n");
    while (talk.peer.sent.length < encode(`${sent}mine\nmore\n`).length) {
      await turn();
    }
    talk.peer.gets("second\n");
    await talk.shows(lineOf("second"));
    talk.input.gets(null);
    talk.peer.gets(null);
    assertEquals((await talk.result()).code, 0);
  });

  test(`${script} --talk: when the peer ends first, a terminal ends as well`, async () => {
    using talk = startTalk({ reads: [null] }, { terminal: true, input: [] });
    const { code, out } = await talk.result();
    assertEquals([code, out], [0, [...before, "[::1]:7 ended", ...after]]);
    assertEquals(talk.peer.log.slice(-2), ["closeWrite", "close"]);
  });

  test(`${script} --talk: when the peer ends first, a pipe is sent to its end`, async () => {
    using talk = startTalk({ reads: [null] }, { input: ["one\n"] });
    await talk.shows("[::1]:7 ended");
    talk.input.gets("two\n");
    talk.input.gets(null);
    assertEquals((await talk.result()).code, 0);
    assertEquals(talk.peer.sent, [...encode(`${sent}one\ntwo\n`)]);
  });

  const broken = script === "server.ts"
    ? { line: ["[::1]:7 reset the connection"], err: [] }
    : { line: [], err: ["error: 127.0.0.1:8888 reset the connection"] };

  test(`${script} --talk: a reset ends it with 1, after what has come`, async () => {
    const reset = new Deno.errors.ConnectionReset("reset");
    using talk = startTalk({ reads: ["one\ntwo\n", reset] }, { input: [] });
    assertEquals(await talk.result(), {
      code: 1,
      out: [...before, lineOf("one"), lineOf("two"), ...broken.line, ...after],
      err: broken.err,
    });
  });

  test(`${script} --talk: a send that fails after the peer has ended is a reset`, async () => {
    using talk = startTalk({
      reads: [null],
      write: (bytes) =>
        new TextDecoder().decode(bytes) === "late\n"
          ? fail(new Deno.errors.BrokenPipe("gone"))
          : bytes.length,
    }, { input: [] });
    await talk.shows("[::1]:7 ended");
    talk.input.gets("late\n");
    assertEquals(await talk.result(), {
      code: 1,
      out: [...before, "[::1]:7 ended", ...broken.line, ...after],
      err: broken.err,
    });
  });

  test(`${script} --talk: a send that fails before is one after what has come`, async () => {
    const failed = Promise.withResolvers<void>();
    using talk = startTalk({
      write: (bytes) => {
        if (new TextDecoder().decode(bytes) !== "lost\n") return bytes.length;
        failed.resolve();
        return fail(new Deno.errors.ConnectionReset("reset"));
      },
    }, { input: ["lost\n"] });
    await failed.promise;
    await turn();
    talk.peer.gets("came before\n", null);
    assertEquals(await talk.result(), {
      code: 1,
      out: [...before, lineOf("came before"), ...broken.line, ...after],
      err: broken.err,
    });
  });

  test(`${script} --talk: a peer that does not read holds stdin, not what is shown`, async () => {
    using talk = startTalk({
      write: (bytes) =>
        new TextDecoder().decode(bytes) === "held\n" ? never() : bytes.length,
    }, { input: ["held\n", "later\n"], terminal: true });
    talk.peer.gets("one\n");
    await talk.shows(lineOf("one"));
    talk.peer.gets("two\n");
    await talk.shows(lineOf("two"));
    assertEquals(talk.input.reads, 1);
    talk.peer.gets(new Deno.errors.ConnectionReset("reset"));
    assertEquals((await talk.result()).code, 1);
  });

  test(`${script} --talk: no line is dropped, however short it and long its address`, async () => {
    using talk = startTalk({});
    const hostname = "2001:db8:1111:2222:3333:4444:5555:6666";
    talk.peer.remoteAddr = { transport: "tcp", hostname, port: 50_000 };
    talk.peer.gets("\n".repeat(LIMIT), null);
    const { out } = await talk.result();
    const lines = out.filter((line) => line === `[${hostname}]:50000: `);
    assertEquals(lines.length, LIMIT);
  });

  test(`${script} --talk: a peer that floods is read as fast as its lines are written`, async () => {
    const reader = Promise.withResolvers<void>();
    const lines = Array.from({ length: 300_000 }, (_, i) => `${i}`);
    const talking = Promise.withResolvers<void>();
    using talk = startTalk({ reads: [lines.join("\n"), null] }, {
      stdout: async (bytes) => {
        if (new TextDecoder().decode(bytes).includes("[::1]:7: ")) {
          talking.resolve();
          await reader.promise;
        }
        return bytes.length;
      },
    });
    await talking.promise;
    for (let i = 0; i < 10; i++) await turn();
    const reads = talk.peer.log.filter((call) => call === "read").length;
    assert(reads < 5, `${reads} reads ahead`);
    reader.resolve();
    const { code, out } = await talk.result();
    assertEquals(code, 0);
    assertEquals(out, [
      ...before,
      ...lines.map(lineOf),
      "[::1]:7 ended",
      ...after,
    ]);
  });
}

test("server.ts --talk: stdin is not read before a client is there", async () => {
  using _ = listening(() => new MemoryListener([]));
  const command = runWith({ input: ["mine\n"] }, serverMain, "--talk");
  await command.line(/^Listening/);
  await turn();
  assertEquals(command.input.reads, 0);
  command.handlers.get("SIGINT")!();
  assertEquals(await command.result(), {
    code: 1,
    out: [
      "Listening on [::1]:8",
      "Stopping: 0 clients to finish",
      "Served 0 clients",
    ],
    err: [],
  });
});

test("server.ts --talk: the first signal half-closes, and waits for the client's end", async () => {
  using talk = talks["server.ts"]({}, { input: [], terminal: true });
  await talk.line(/^Listening/);
  await talk.line(/ connected$/);
  while (talk.input.reads === 0) await turn();
  talk.handlers.get("SIGINT")!();
  await talk.line(/^Stopping: 1 client to finish$/);
  while (!talk.peer.log.includes("closeWrite")) await turn();
  talk.peer.gets("bye\n", null);
  const { code, out } = await talk.result();
  assertEquals([code, out.slice(-3)], [0, [
    "[::1]:7: bye",
    "[::1]:7 ended",
    "Served 1 client",
  ]]);
});

test("server.ts --talk: a second signal waits for no reader", async () => {
  const reader = Promise.withResolvers<void>();
  using talk = talks["server.ts"]({ reads: ["one\n"] }, {
    input: [],
    stdout: (bytes) => {
      if (!new TextDecoder().decode(bytes).includes(": one")) {
        return bytes.length;
      }
      reader.resolve();
      return never();
    },
  });
  await reader.promise;
  talk.handlers.get("SIGINT")!();
  talk.handlers.get("SIGINT")!();
  assertEquals((await talk.result()).code, 130);
});

test("server.ts --talk: a signal while it sends half-closes after that", async () => {
  const sent = Promise.withResolvers<void>();
  using talk = talks["server.ts"]({
    write: async (bytes) => {
      if (new TextDecoder().decode(bytes) === "held\n") await sent.promise;
      return bytes.length;
    },
  }, { input: ["held\n"] });
  while (!talk.peer.log.includes("write") || talk.input.reads === 0) {
    await turn();
  }
  await turn();
  talk.handlers.get("SIGINT")!();
  await turn();
  assertEquals(talk.peer.log.includes("closeWrite"), false);
  sent.resolve();
  while (!talk.peer.log.includes("closeWrite")) await turn();
  assertEquals(talk.peer.sent, [...encode(`${GREETING}\nheld\n`)]);
  talk.peer.gets(null);
  assertEquals((await talk.result()).code, 0);
});

for (const args of [[], ["--quiet"]]) {
  test(`server.ts --talk ${args}: the second signal ends at once, with 130`, async () => {
    using talk = talks["server.ts"]({}, { input: [] }, ...args);
    while (talk.input.reads === 0) await turn();
    talk.handlers.get("SIGINT")!();
    talk.handlers.get("SIGINT")!();
    const lines = [
      "[::1]:7 connected",
      "Stopping: 1 client to finish",
      "[::1]:7 cut off",
      "Served 1 client",
    ];
    assertEquals(await talk.result(), {
      code: 130,
      out: ["Listening on [::1]:8", ...args.length ? [] : lines],
      err: [],
    });
  });
}

socketTest(
  "server.ts --talk: on a real connection, a second client is refused",
  async () => {
    const command = await startServer({ input: [], terminal: true }, "--talk");
    using connection = await Deno.connect({ port: command.port });
    const [address] = await command.line(/^(.+) connected$/);
    await assertRejects(
      () => Deno.connect({ port: command.port }),
      Deno.errors.ConnectionRefused,
    );
    assertEquals(await readLine(connection), GREETING);
    command.input.gets("在嗎?\n");
    assertEquals(await readLine(connection), "在嗎?");
    await writeAll(connection, "在\r\n再");
    await connection.closeWrite();
    assertEquals(await readAll(connection), "");
    const { code, out } = await command.result();
    assertEquals([code, out.slice(2)], [0, [
      `${address}: 在`,
      `${address}: 再`,
      `${address} ended`,
      "Served 1 client",
    ]]);
  },
);

socketTest(
  "server.ts --talk: on a real connection, a reset ends it with 1",
  async () => {
    const command = await startServer({ input: [], terminal: true }, "--talk");
    const rude = await resetter(command.port);
    await rude.write("half a line");
    await command.line(/ connected$/);
    while (command.input.reads === 0) await turn();
    await rude.reset();
    await command.line(/ reset the connection$/);
    assertEquals((await command.result()).code, 1);
  },
);

for (
  const args of [
    ["--talk", "--timeout=5"],
    ["--talk", "--timeout=10"],
    ["--max-clients=2", "--talk"],
  ]
) {
  test(`server.ts: ${args.join(" ")} is a wrong command line`, async () => {
    using _ = noSockets();
    const { code, out, err } = await run(serverMain, ...args).result();
    assertEquals([code, out, err.length], [2, [], 1]);
    const other = args.find((arg) => arg !== "--talk")!.split("=")[0];
    assertMatch(
      err[0]!,
      new RegExp(`^error: .*--talk.* ${other}; see --help$`),
    );
  });
}

socketTest(
  "client.ts --talk: its time covers the greeting's line",
  async () => {
    using listener = listen();
    const { port } = listener.addr;
    const args = ["--talk", "-p", `${port}`, "--timeout=0.1"];
    const { result } = run(clientMain, ...args);
    using connection = await listener.accept();
    await writeAll(connection, "a line that does not end");
    const { code, err } = await result();
    assertEquals([code, err.length], [1, 1]);
    assertMatch(err[0]!, / took too long; /);
  },
);

socketTest("client.ts --talk: its time does not cover the talk", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const { line, result } = runWith(
    { input: [], terminal: true },
    clientMain,
    ...["--talk", "-p", `${port}`, "--timeout=0.2"],
  );
  using connection = await listener.accept();
  await writeAll(connection, "hello\nat once\n");
  await line(/^Connected/);
  await line(/^Greeting: hello$/);
  await line(/^Replied: /);
  await line(/: at once$/);
  // Longer than its time.
  await new Promise((resolve) => setTimeout(resolve, 400));
  await writeAll(connection, "later\n");
  await line(/: later$/);
  assertEquals(await readLine(connection), REPLY);
  await connection.closeWrite();
  await line(/ ended$/);
  assertEquals((await result()).code, 0);
});

test("client.ts --talk: a late deadline does not end a talk that has begun", async () => {
  const peer = new MemoryConnection();
  using _ = connecting(() => {
    standStill(200);
    setTimeout(() => peer.gets("hello\n"), 20);
    return Promise.resolve(peer);
  });
  const args = ["--talk", "--timeout=0.1"];
  const { shows, result } = runWith(
    { terminal: true, input: [] },
    clientMain,
    ...args,
  );
  await shows(`Replied: ${REPLY}`);
  // Longer than a late deadline waits.
  await new Promise((resolve) => setTimeout(resolve, 150));
  peer.gets("later\n", null);
  const { code, out } = await result();
  assertEquals([code, out.at(-2)], [0, "[::1]:7: later"]);
});

for (
  const { what, greeting, pattern } of [
    {
      what: "a line of more than 64 KiB",
      greeting: "x".repeat(LIMIT + 1),
      pattern: / sent a greeting longer than 65536 bytes$/,
    },
    { what: "nothing", greeting: "", pattern: / closed without a greeting$/ },
  ]
) {
  test(`client.ts --talk: ${what} for a greeting is an error`, async () => {
    const reads = [...greeting ? [greeting] : [], null];
    using _ = connectTo(new MemoryConnection({ reads }));
    const { code, out, err } = await run(clientMain, "--talk").result();
    assertEquals([code, out.length, err.length], [1, 1, 1]);
    assertMatch(err[0]!, pattern);
  });
}

test("client.ts --talk: a greeting's line of 64 KiB is taken", async () => {
  const greeting = "x".repeat(LIMIT);
  const reads = [greeting, "\r\n", null];
  using _ = connectTo(new MemoryConnection({ reads }));
  const { code, out } = await run(clientMain, "--talk").result();
  assertEquals([code, out[1]], [0, `Greeting: ${greeting}`]);
});

test("client.ts --talk: what came with a long greeting is not dropped", async () => {
  const peer = new MemoryConnection({
    reads: ["\x01".repeat(57_000), "\n".repeat(8192), null],
  });
  const hostname = "2001:db8:1111:2222:3333:4444:5555:6666";
  peer.remoteAddr = { transport: "tcp", hostname, port: 50_000 };
  using _ = connectTo(peer);
  const reader = async (bytes: Uint8Array) => {
    await turn(); // slower than the lines come
    return bytes.length;
  };
  const args = ["--talk", `--reply=${"\x01".repeat(LIMIT)}`];
  const { out } = await runWith({ stdout: reader }, clientMain, ...args)
    .result();
  const lines = out.filter((line) => line === `[${hostname}]:50000: `);
  assertEquals(lines.length, 8191);
});

socketTest(
  "client.ts: without --talk, a talking server takes too long",
  async () => {
    // Both commands have the same stdin here.
    const stdin = { input: [], terminal: true };
    const server = await startServer(stdin, "--talk");
    const args = ["-p", `${server.port}`, "--timeout=0.2"];
    const { code, err } = await runWith(stdin, clientMain, ...args).result();
    assertEquals([code, err.length], [1, 1]);
    assertMatch(err[0]!, / took too long; /);
    assertEquals((await server.result()).code, 0);
  },
);

for (
  const { stdin, input, terminal, reply } of [
    { stdin: "a terminal", input: [], terminal: true, reply: `${REPLY}\n` },
    {
      stdin: "a pipe",
      input: ["one\n", "two", null],
      terminal: false,
      reply: `${REPLY}\none\ntwo\n`,
    },
  ]
) {
  socketTest(
    `client.ts --talk: with ${stdin}, a server without --talk gets one reply`,
    async () => {
      await using server = start();
      const args = ["--talk", "-p", `${server.port}`];
      const { code, out } = await runWith(
        { input, terminal },
        clientMain,
        ...args,
      )
        .result();
      assertEquals([code, out], [0, [
        `Connected to 127.0.0.1:${server.port}`,
        `Greeting: ${GREETING}`,
        `Replied: ${REPLY}`,
        `127.0.0.1:${server.port} ended`,
      ]]);
      assertEquals((await server.over.next()).reply, reply);
    },
  );
}

// Both together

socketTest(
  "both: the client gets the greeting, and the server the reply",
  async () => {
    await using server = start();
    assertEquals(await exchange({ port: server.port }), GREETING);
    const { client, outcome, reply } = await server.over.next();
    assertEquals([outcome, reply], ["replied", REPLY]);
    assertEquals(client.port, server.connected.all[0]!.port);
  },
);

socketTest(
  "both: the texts can be chosen, and are sent as they are",
  async () => {
    const greeting = "\uFEFFhello\r\n\0";
    const reply = "\uFEFF\x1b[31m\n\n";
    await using server = start({ greeting });
    assertEquals(await exchange({ port: server.port, reply }), greeting);
    assertEquals((await server.over.next()).reply, reply);
  },
);

socketTest(
  "both: of 300 clients at once, each gets its own outcome",
  async () => {
    await using server = start();
    const replies = Array.from({ length: 300 }, (_, i) => `reply ${i}`);
    const greetings = await Promise.all(
      replies.map((reply) => exchange({ port: server.port, reply })),
    );
    assertEquals(new Set(greetings), new Set([GREETING]));
    const got = [];
    for (const _ of replies) got.push(await server.over.next());
    assertEquals(got.map(({ reply }) => reply).sort(), replies.sort());
    assertEquals(
      got.map(({ client }) => client.port).sort(),
      server.connected.all.map(({ port }) => port).sort(),
    );
  },
);

socketTest("both: the two commands talk to each other", async () => {
  const { port, result } = await startServer(
    {},
    "--once",
    "--greeting",
    "hello",
  );
  assertEquals(await clientMain(["--port", `${port}`, "--reply", "hi"]), 0);
  const { code, out, err } = await result();
  assertEquals([code, err], [0, []]);
  const address = out.find((line) => line.endsWith(" connected"))!
    .split(" ")[0];
  assertEquals(
    out.filter((line) => /^(Listening|127|Served)/.test(line)),
    [
      `Listening on 127.0.0.1:${port}`,
      `${address} connected`,
      `${address} replied: hi`,
      "Served 1 client",
    ],
  );
  assertEquals(
    out.filter((line) => /^(Connected|Greeting|Replied)/.test(line)),
    [`Connected to 127.0.0.1:${port}`, "Greeting: hello", "Replied: hi"],
  );
});

// Helpers

/** A test in memory. It is stopped where it would hang. */
function test(name: string, fn: () => void | Promise<void>): void {
  Deno.test({ name, fn, timeout: 10_000 });
}

/** A test with sockets, on the loopback and free ports only. */
function socketTest(
  name: string,
  fn: () => Promise<void>,
  here = true,
): void {
  const ignore = state !== "granted" || !here;
  Deno.test({ name, fn, timeout: 10_000, ignore });
}

/** Replaces a property until the end of the block. */
function replace<T extends object, K extends keyof T>(
  object: T,
  name: K,
  value: T[K],
): Disposable {
  const original = object[name];
  object[name] = value;
  return { [Symbol.dispose]: () => void (object[name] = original) };
}

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

/** A server on a free port, with what it calls back with. */
function start(options: ServeOptions = {}) {
  const connected = new Events<Deno.NetAddr>();
  const over = new Events<Exchange>();
  const running = serve({
    port: 0,
    onConnect: connected.push,
    onOutcome: over.push,
    ...options,
  });
  return { ...running, port: running.addr.port, connected, over };
}

/** The same in memory. An error is what an accept rejects with. */
function startInMemory(
  accepts: (MemoryConnection | Error)[],
  options: ServeOptions = {},
) {
  const listener = new MemoryListener(accepts);
  using _ = listening(() => listener);
  return { ...start(options), listener };
}

function listen(): Deno.TcpListener {
  return Deno.listen({ hostname: "127.0.0.1", port: 0 });
}

function encode(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

async function readAll(connection: Deno.Conn): Promise<string> {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const chunk = new Uint8Array(16 * 1024);
  let text = "";
  for (;;) {
    const count = await connection.read(chunk);
    if (count === null) return text + decoder.decode();
    text += decoder.decode(chunk.subarray(0, count), { stream: true });
  }
}

/** Reads to a line end, byte by byte. */
async function readLine(connection: Deno.Conn): Promise<string> {
  const byte = new Uint8Array(1);
  const bytes: number[] = [];
  while (await connection.read(byte) !== null && byte[0] !== 0x0a) {
    bytes.push(byte[0]!);
  }
  return new TextDecoder().decode(new Uint8Array(bytes));
}

async function writeAll(connection: Deno.Conn, data: string | Uint8Array) {
  let rest = typeof data === "string" ? encode(data) : data;
  while (rest.length > 0) rest = rest.subarray(await connection.write(rest));
}

/** A client that resets when asked to, with whatever it is still owed. */
async function resetter(port: number) {
  const socket = connectNode({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => {}); // what a reset may bring is not the test's business
  await new Promise((resolve) => socket.once("connect", resolve));
  const closed = new Promise<void>((resolve) =>
    socket.once("close", () => resolve())
  );
  return {
    port: socket.localPort,
    write: (text: string) => new Promise((done) => socket.write(text, done)),
    reset: () => {
      socket.resetAndDestroy();
      return closed;
    },
  };
}

function never(): Promise<never> {
  return new Promise(() => {});
}

function fail(error: Error): never {
  throw error;
}

/** What an accept rejects with where descriptors run out. */
function shortage(message: string): Error {
  return Object.assign(new Error(message), { code: "EMFILE" });
}

/** A turn of the event loop. */
function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve));
}

/** Keeps the process busy, as if it stood still. */
function standStill(milliseconds: number): void {
  const end = performance.now() + milliseconds;
  while (performance.now() < end);
}

/** The delays of all timers that are set until the end of the block. */
function timers() {
  const delays: number[] = [];
  const set = globalThis.setTimeout;
  const note = (fn: () => void, delay = 0) => {
    delays.push(delay);
    return set(fn, delay);
  };
  const noting = note as typeof globalThis.setTimeout;
  return { delays, ...replace(globalThis, "setTimeout", noting) };
}

/** What is reported on stderr until the end of the block. */
function capture() {
  const errors = new Events<string>();
  const replaced = replace(console, "error", errors.push);
  return { all: errors.all, ...replaced };
}

/** Ways in which the text may come. */
function pieces() {
  const bytes = encode(TEXT);
  return {
    "one byte at a time": Array.from(bytes, (_, i) => bytes.subarray(i, i + 1)),
    "with characters split": [bytes.subarray(0, 4), 0, bytes.subarray(4)],
    "with empty reads": [0, bytes, 0, 0],
  } as const;
}

// Commands

/** What a command meets outside of the network. */
interface Setup {
  /** Takes bytes, and gives how many it took. */
  stdout?: (bytes: Uint8Array) => number | Promise<number>;
  stderr?: (text: string) => void;
  /** What the reads of stdin give; by default its end. */
  input?: Input[];
  /** Whether stdin is a terminal. */
  terminal?: boolean;
}

type Input = string | Uint8Array | null | Error;

/** Stdin in memory: when all is read, a read waits until it gets more. */
class MemoryInput {
  reads = 0;
  readonly #all: Input[];
  #more = Promise.withResolvers<void>();

  constructor(all: Input[]) {
    this.#all = all;
  }

  gets(input: Input): void {
    this.#all.push(input);
    this.#more.resolve();
    this.#more = Promise.withResolvers();
  }

  async read(buffer: Uint8Array): Promise<number | null> {
    this.reads++;
    while (this.#all.length === 0) await this.#more.promise;
    return take(this.#all, buffer);
  }
}

/** Reads from the first of them, and leaves what did not fit. */
function take(
  from: (string | Uint8Array | 0 | null | Error)[],
  buffer: Uint8Array,
): number | null {
  const next = from.shift()!;
  if (next instanceof Error) throw next;
  if (next === null) from.unshift(null); // the end is read again and again
  if (next === null || next === 0) return next;
  const bytes = typeof next === "string" ? encode(next) : next;
  const taken = bytes.subarray(0, buffer.length);
  if (taken.length < bytes.length) from.unshift(bytes.subarray(taken.length));
  buffer.set(taken);
  return taken.length;
}

type Main = (args: string[]) => Promise<number>;

/** A command under way: what it prints, and its stop signals. */
function runWith(setup: Setup, main: Main, ...args: string[]) {
  const { stdout, stderr, terminal = false } = setup;
  const input = new MemoryInput(setup.input ?? [null]);
  const out = new Events<string>();
  const err = new Events<string>();
  const handlers = new Map<Deno.Signal, () => void>();
  const decoder = new TextDecoder();
  let rest = "";
  const write = async (bytes: Uint8Array) => {
    const count = await (stdout?.(bytes) ?? bytes.length);
    rest += decoder.decode(bytes.subarray(0, count), { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop()!;
    lines.forEach(out.push);
    return count;
  };
  const replaced = [
    replace(Deno.stdin, "read", (buffer) => input.read(buffer)),
    replace(Deno.stdin, "isTerminal", () => terminal),
    replace(Deno.stdout, "write", write),
    replace(console, "error", stderr ?? err.push),
    replace(Deno, "addSignalListener", (name, handler) => {
      handlers.set(name, handler);
    }),
    replace(Deno, "removeSignalListener", (name) => {
      handlers.delete(name);
    }),
  ];
  const end = main(args).finally(() => {
    for (const one of replaced.reverse()) one[Symbol.dispose]();
  });
  return {
    out,
    input,
    handlers,
    /** Waits until it has printed this line. */
    async shows(line: string): Promise<void> {
      while (await out.next() !== line);
    },
    /** The next line must match; gives its groups. */
    async line(pattern: RegExp): Promise<string[]> {
      const line = await out.next();
      assertMatch(line, pattern);
      return line.match(pattern)!.slice(1);
    },
    /** Everything, when it has ended. */
    async result() {
      const code = await end;
      assertEquals(handlers.size, 0);
      return { code, out: out.all, err: err.all };
    },
  };
}

function run(main: Main, ...args: string[]) {
  return runWith({}, main, ...args);
}

async function startServer(setup: Setup, ...args: string[]) {
  const command = runWith(setup, serverMain, "--port", "0", ...args);
  const [port] = await command.line(/^Listening on 127\.0\.0\.1:(\d+)$/);
  return { ...command, port: Number(port) };
}

/** Gives what a command says of an error of `Deno.listen` or `Deno.connect`. */
async function said(main: Main, error: Error, ...args: string[]) {
  using _listen = listening(() => fail(error));
  using _connect = connecting(() => Promise.reject(error));
  const { code, out, err } = await run(main, ...args).result();
  assertEquals([code, out, err.length], [1, [], 1]);
  return err[0]!;
}

// Connections in memory

/** What a connection in memory does; by default the peer is silent. */
interface Behaviour {
  /** What the reads give, one by one; a further read waits for the close. */
  reads?: (string | Uint8Array | 0 | null | Error)[];
  write?: (bytes: Uint8Array) => number | Promise<number>;
  closeWrite?: () => void;
}

/** A script's side of a connection, and the log of what the script did. */
class MemoryConnection implements Deno.TcpConn {
  remoteAddr: Deno.NetAddr = { transport: "tcp", hostname: "::1", port: 7 };
  localAddr: Deno.NetAddr = { transport: "tcp", hostname: "::1", port: 9 };
  readonly log: string[] = [];
  readonly sent: number[] = [];
  readonly #behaviour: Behaviour;
  readonly #reads: NonNullable<Behaviour["reads"]>;
  #more = Promise.withResolvers<void>();
  readonly #closed = Promise.withResolvers<never>();
  #isClosed = false;
  #isHalfClosed = false;

  constructor(behaviour: Behaviour = {}) {
    this.#behaviour = behaviour;
    this.#reads = [...behaviour.reads ?? []];
    this.#closed.promise.catch(() => {}); // only calls that are pending meet it
  }

  /** The same, as new. */
  again(): MemoryConnection {
    const connection = new MemoryConnection(this.#behaviour);
    connection.localAddr = this.localAddr;
    return connection;
  }

  async read(buffer: Uint8Array): Promise<number | null> {
    this.#call("read");
    while (this.#reads.length === 0) {
      await Promise.race([this.#more.promise, this.#closed.promise]);
    }
    return take(this.#reads, buffer);
  }

  /** Gives more to the reads. */
  gets(...reads: NonNullable<Behaviour["reads"]>): void {
    this.#reads.push(...reads);
    this.#more.resolve();
    this.#more = Promise.withResolvers();
  }

  async write(bytes: Uint8Array): Promise<number> {
    this.#call("write");
    if (this.#isHalfClosed) throw new Deno.errors.BrokenPipe("half-closed");
    const count = await Promise.race([
      Promise.try(() => this.#behaviour.write?.(bytes) ?? bytes.length),
      this.#closed.promise,
    ]);
    for (const byte of bytes.subarray(0, count)) this.sent.push(byte);
    return count;
  }

  async closeWrite(): Promise<void> {
    this.#call("closeWrite");
    this.#isHalfClosed = true;
    await this.#behaviour.closeWrite?.();
  }

  close(): void {
    this.#call("close");
    this.#isClosed = true;
    this.#closed.reject(new Deno.errors.Interrupted("closed under a call"));
  }

  [Symbol.dispose](): void {
    if (!this.#isClosed) this.close();
  }

  #call(name: string): void {
    if (this.#isClosed) throw new Deno.errors.BadResource("closed");
    this.log.push(name);
  }

  // Nothing here needs these.
  ref(): void {}
  unref(): void {}
  setNoDelay(): void {}
  setKeepAlive(): void {}
  get readable(): never {
    throw new Error("not in memory");
  }
  get writable(): never {
    throw new Error("not in memory");
  }
}

/** A listener that gives `accepts` one by one, then waits for the close. */
class MemoryListener implements Deno.TcpListener {
  readonly addr = { transport: "tcp", hostname: "::1", port: 8 } as const;
  accepted = 0;
  readonly #accepts: (MemoryConnection | Error)[];
  readonly #closed = Promise.withResolvers<never>();
  #isClosed = false;

  constructor(accepts: (MemoryConnection | Error)[]) {
    this.#accepts = accepts;
    this.#closed.promise.catch(() => {}); // only a pending accept meets it
  }

  async accept(): Promise<Deno.TcpConn> {
    const next = this.#accepts[this.accepted];
    if (next === undefined || this.#isClosed) return await this.#closed.promise;
    this.accepted++;
    if (!(next instanceof MemoryConnection)) throw next;
    return next;
  }

  close(): void {
    this.#isClosed = true;
    this.#closed.reject(new Deno.errors.BadResource("closed under an accept"));
  }

  [Symbol.dispose](): void {
    this.close();
  }

  // Nothing here needs these.
  ref(): void {}
  unref(): void {}
  [Symbol.asyncIterator](): never {
    throw new Error("not in memory");
  }
}

/** Makes `Deno.listen` do this until the end of the block. */
function listening(
  fn: (options: Deno.TcpListenOptions) => Deno.TcpListener,
): Disposable {
  return replace(Deno, "listen", fn as typeof Deno.listen);
}

/** Makes `Deno.connect` do this until the end of the block. */
function connecting(
  fn: (options: Deno.ConnectOptions) => Promise<Deno.TcpConn>,
): Disposable {
  return replace(Deno, "connect", fn as typeof Deno.connect);
}

function connectTo(connection: MemoryConnection): Disposable {
  return connecting(() => Promise.resolve(connection));
}

function refused(): Promise<never> {
  return Promise.reject(new Deno.errors.ConnectionRefused("refused"));
}

/** A connect that hangs until it is aborted. */
function hang({ signal }: Deno.ConnectOptions): Promise<never> {
  return new Promise((_, reject) => {
    signal!.addEventListener("abort", () => reject(signal!.reason));
  });
}

/** Makes the test fail where a socket is asked for. */
function noSockets(): Disposable {
  const opened = () => fail(new Error("a socket was opened"));
  const both = [listening(opened), connecting(() => Promise.try(opened))];
  return {
    [Symbol.dispose]: () => both.forEach((one) => one[Symbol.dispose]()),
  };
}

/** A peer whose ten bytes take longer to read than one quiet time. */
function trickle(): MemoryConnection {
  const peer = new MemoryConnection({ reads: [..."xxxxxxxxxx", null] });
  const read = peer.read.bind(peer);
  peer.read = async (buffer) => {
    await new Promise((resolve) => setTimeout(resolve, 10));
    return await read(buffer);
  };
  return peer;
}

/** A peer that sends a byte every 5 ms, without an end. */
function dribbler(): MemoryConnection {
  const peer = new MemoryConnection();
  peer.read = async (buffer) => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    if (peer.log.includes("close")) throw new Deno.errors.BadResource("closed");
    buffer[0] = 0x41;
    return 1;
  };
  return peer;
}
