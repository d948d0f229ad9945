/**
 * Tests of the server and the client: against each other, against raw sockets,
 * and over connections in memory for what sockets won't do on demand.
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
import { exchange, main as client } from "./client.ts";
import {
  type Exchange,
  main as server,
  serve,
  type ServeOptions,
} from "./server.ts";

const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const LIMIT = 64 * 1024;

// Helpers

const { state } = await Deno.permissions.query({ name: "net" });
if (state !== "granted") {
  console.log(
    "Without net access, some are ignored: `deno test --allow-net` runs them all.",
  );
}

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

/** A server on a free port, with what it tells. */
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

const listen = () => Deno.listen({ hostname: "127.0.0.1", port: 0 });
const encode = (text: string) => new TextEncoder().encode(text);

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

async function writeAll(connection: Deno.Conn, data: string | Uint8Array) {
  let rest = typeof data === "string" ? encode(data) : data;
  while (rest.length > 0) rest = rest.subarray(await connection.write(rest));
}

/** A client that resets when told to, with whatever it is still owed. */
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

const never = () => new Promise<never>(() => {});

/** What a connection in memory does; by default the peer is silent. */
interface Behaviour {
  /** What the reads give, one by one; a further read waits for the close. */
  reads?: (string | Uint8Array | 0 | null | Error)[];
  write?: (bytes: Uint8Array) => number | Promise<number>;
  closeWrite?: () => void;
}

/** A script's side of a connection, and the log of what the script did. */
class MemoryConnection {
  readonly remoteAddr = { transport: "tcp", hostname: "::1", port: 7 } as const;
  readonly log: string[] = [];
  readonly sent: number[] = [];
  #closed = Promise.withResolvers<void>();
  #behaviour: Behaviour;

  constructor(behaviour: Behaviour = {}) {
    this.#behaviour = behaviour;
  }

  async read(buffer: Uint8Array): Promise<number | null> {
    this.log.push("read");
    const next = this.#behaviour.reads?.shift();
    if (next === undefined) {
      await this.#closed.promise;
      throw new Deno.errors.BadResource("closed under a read");
    }
    if (next instanceof Error) throw next;
    if (next === null || next === 0) return next;
    const bytes = typeof next === "string" ? encode(next) : next;
    const taken = bytes.subarray(0, buffer.length);
    if (taken.length < bytes.length) {
      this.#behaviour.reads!.unshift(bytes.subarray(taken.length));
    }
    buffer.set(taken);
    return taken.length;
  }

  async write(bytes: Uint8Array): Promise<number> {
    this.log.push("write");
    const closed = this.#closed.promise.then(() => {
      throw new Deno.errors.BadResource("closed under a write");
    });
    const count = await Promise.race([
      Promise.try(() => this.#behaviour.write?.(bytes) ?? bytes.length),
      closed,
    ]);
    this.sent.push(...bytes.subarray(0, count));
    return count;
  }

  closeWrite(): Promise<void> {
    this.log.push("closeWrite");
    return Promise.try(() => this.#behaviour.closeWrite?.());
  }

  close(): void {
    this.log.push("close");
    this.#closed.resolve();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** A listener that gives `accepts` one by one, then waits for the close. */
class MemoryListener {
  readonly addr = { transport: "tcp", hostname: "::1", port: 8 } as const;
  accepted = 0;
  #closed = Promise.withResolvers<void>();
  #accepts: (MemoryConnection | Error)[];

  constructor(accepts: (MemoryConnection | Error)[]) {
    this.#accepts = accepts;
  }

  async accept(): Promise<MemoryConnection> {
    const next = this.#accepts[this.accepted];
    if (next === undefined) {
      await this.#closed.promise;
      throw new Deno.errors.BadResource("closed under an accept");
    }
    this.accepted++;
    if (next instanceof Error) throw next;
    return next;
  }

  [Symbol.dispose](): void {
    this.#closed.resolve();
  }
}

/** Makes `Deno.listen` do this until the end of the block. */
function listening(
  fn: (options: Deno.TcpListenOptions) => MemoryListener,
): Disposable {
  return replace(Deno, "listen", fn as never);
}

/** Makes `Deno.connect` do this until the end of the block. */
function connecting(
  fn: (options: Deno.ConnectOptions) => Promise<unknown>,
): Disposable {
  return replace(Deno, "connect", fn as never);
}

const connectTo = (connection: MemoryConnection) =>
  connecting(() => Promise.resolve(connection));

const refused = () =>
  Promise.reject(new Deno.errors.ConnectionRefused("refused"));

/** A connect that hangs until it is aborted. */
const hang = ({ signal }: Deno.ConnectOptions) =>
  new Promise<never>((_, reject) => {
    signal!.addEventListener("abort", () => reject(signal!.reason));
  });

/** Makes the test fail where a socket is asked for. */
function noSockets(): Disposable {
  const fail = () => assert(false, "a socket was opened") as never;
  const both = [listening(fail), connecting(() => Promise.try(fail))];
  return {
    [Symbol.dispose]: () => both.forEach((one) => one[Symbol.dispose]()),
  };
}

function startInMemory(
  accepts: (MemoryConnection | Error)[],
  options: ServeOptions = {},
) {
  const listener = new MemoryListener(accepts);
  using _ = listening(() => listener);
  return { ...start(options), listener };
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

/** A command under way: what it prints, and its stop signals. */
function run(main: (args: string[]) => Promise<number>, ...args: string[]) {
  const out = new Events<string>();
  const err = new Events<string>();
  const handlers = new Map<Deno.Signal, () => void>();
  const replaced = [
    replace(console, "log", out.push),
    replace(console, "error", err.push),
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
    err,
    handlers,
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

const startServer = async (...args: string[]) => {
  const command = run(server, "--port", "0", ...args);
  const [port] = await command.line(/^Listening on 127\.0\.0\.1:(\d+)$/);
  return { ...command, port: Number(port) };
};

// The exchange

socketTest(
  "the client gets the greeting, and the server the reply",
  async () => {
    await using server = start();
    assertEquals(await exchange({ port: server.port }), GREETING);
    const { client, outcome, reply } = await server.over.next();
    assertEquals([outcome, reply], ["replied", REPLY]);
    assertEquals(client.port, server.connected.all[0]!.port);
  },
);

socketTest("both texts can be chosen, and are sent as they are", async () => {
  const greeting = "\uFEFFhello\r\n\0";
  const reply = "\uFEFF\x1b[31m\n\n";
  await using server = start({ greeting });
  assertEquals(await exchange({ port: server.port, reply }), greeting);
  assertEquals((await server.over.next()).reply, reply);
});

socketTest("of 300 clients at once, each gets its own outcome", async () => {
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
});

socketTest("a reply is told with the address that it came from", async () => {
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
});

socketTest(
  "the server's half ends after the greeting, the client's not",
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
  "a client that replies before it reads is heard and greeted",
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
  "a client that has replied and gone before it is accepted is heard",
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
  "the lesson's client is served: one recv, one send, close",
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
  "the lesson's server is understood: accept, send, close",
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
  "the client sends its reply and nothing else, then closes",
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

test("the client replies only after the end of the greeting", async () => {
  const connection = new MemoryConnection({ reads: ["你", 0, "好", null] });
  using _ = connectTo(connection);
  const order: string[] = [];
  await exchange({
    onConnect: ({ port }) => order.push(`connected to ${port}`),
    onGreeting: (greeting) => order.push(greeting, ...connection.log),
  });
  assertEquals(order, [
    "connected to 7",
    "你好",
    ..."read ".repeat(4).trim().split(" "),
  ]);
  assertEquals(connection.log.slice(4), ["write", "close"]);
});

// Pieces

const text = "你好,客戶端 👋🏽";
const bytes = encode(text);
const pieces = {
  "one byte at a time": Array.from(bytes, (_, i) => bytes.subarray(i, i + 1)),
  "with characters split": [bytes.subarray(0, 4), 0, bytes.subarray(4)],
  "with empty reads": [0, text, 0, 0],
} as const;

for (const [how, reads] of Object.entries(pieces)) {
  test(`a reply that comes ${how} is read whole`, async () => {
    const peer = new MemoryConnection({ reads: [...reads, null] });
    await using server = startInMemory([peer]);
    assertEquals((await server.over.next()).reply, text);
  });

  test(`a greeting that comes ${how} is read whole`, async () => {
    const peer = new MemoryConnection({ reads: [...reads, null] });
    using _ = connectTo(peer);
    assertEquals(await exchange(), text);
  });
}

test("a greeting is sent whole where a write takes one byte", async () => {
  const peer = new MemoryConnection({ reads: [null], write: () => 1 });
  await using server = startInMemory([peer], { greeting: text });
  await server.over.next();
  assertEquals(new Uint8Array(peer.sent), bytes);
  assertEquals(
    peer.log.filter((call) => call === "write").length,
    bytes.length,
  );
});

test("a reply is sent whole where a write takes one byte", async () => {
  const peer = new MemoryConnection({ reads: ["hi", null], write: () => 1 });
  using _ = connectTo(peer);
  await exchange({ reply: text });
  assertEquals(new Uint8Array(peer.sent), bytes);
});

socketTest("a reply in pieces on a real connection is read whole", async () => {
  await using server = start();
  using connection = await Deno.connect({ port: server.port });
  connection.setNoDelay();
  for (const byte of bytes) await writeAll(connection, Uint8Array.of(byte));
  await connection.closeWrite();
  assertEquals((await server.over.next()).reply, text);
});

socketTest(
  "a greeting in pieces on a real connection is read whole",
  async () => {
    using listener = listen();
    const greeting = exchange({ port: listener.addr.port });
    using connection = await listener.accept();
    connection.setNoDelay();
    for (const byte of bytes) await writeAll(connection, Uint8Array.of(byte));
    await connection.closeWrite();
    assertEquals(await greeting, text);
  },
);

test("bytes that are not UTF-8 become U+FFFD in a reply", async () => {
  const peer = new MemoryConnection({
    reads: [Uint8Array.of(0xff, 0x41, 0xe4), null],
  });
  await using server = startInMemory([peer]);
  assertEquals((await server.over.next()).reply, "\uFFFDA\uFFFD");
});

test("bytes that are not UTF-8 become U+FFFD in a greeting", async () => {
  const peer = new MemoryConnection({
    reads: [Uint8Array.of(0xff, 0x41, 0xe4), null],
  });
  using _ = connectTo(peer);
  assertEquals(await exchange(), "\uFFFDA\uFFFD");
});

// Clients that fail

socketTest("a client that leaves without a reply is told as such", async () => {
  await using server = start();
  using connection = await Deno.connect({ port: server.port });
  await connection.closeWrite();
  const { outcome, reply } = await server.over.next();
  assertEquals([outcome, reply], ["left", ""]);
});

socketTest("a silent client is closed when its time is up", async () => {
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

test("a client that keeps sending gets no more time", async () => {
  await using server = startInMemory([dribbler()], { timeout: 50 });
  const { outcome, reply } = await server.over.next();
  assertEquals([outcome, reply], ["timed-out", ""]);
});

test("each client has its own time, whoever came before", async () => {
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
  "a client that resets before it is accepted harms nobody",
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
  "a client that resets before its reply is told as such",
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

socketTest("a reply that breaks off in a reset is not a reply", async () => {
  await using server = start();
  const rude = await resetter(server.port);
  await rude.write("half a re");
  await server.connected.next();
  await rude.reset();
  const { outcome, reply } = await server.over.next();
  assertEquals([outcome, reply], ["reset", ""]);
});

test("an error of any call on one connection stays with its client", async () => {
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

test("an outcome is told when the connection is closed", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const last = new Events<string | undefined>();
  await using _server = startInMemory([peer], {
    onOutcome: () => last.push(peer.log.at(-1)),
  });
  assertEquals(await last.next(), "close");
});

test("a client that can't be greeted any more is still heard", async () => {
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

  socketTest(`a reply of ${limit} bytes, the limit, is taken`, async () => {
    await using server = start({ maxReplyBytes });
    const reply = "x".repeat(limit);
    await exchange({ port: server.port, reply });
    assertEquals((await server.over.next()).reply, reply);
  });

  socketTest(
    `a client is cut off at ${limit + 1} bytes of a reply`,
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

socketTest("a slow reader gets the whole of a long greeting", async () => {
  const greeting = "好".repeat(2_000_000);
  await using server = start({ greeting });
  using connection = await Deno.connect({ port: server.port });
  await server.connected.next();
  assertEquals(
    await exchange({ port: server.port, maxGreetingBytes: 6_000_000 }),
    greeting,
  );
  assertEquals(await readAll(connection), greeting);
});

test("deaf clients run out of time and hold up nobody", async () => {
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

// Limits on accepting

test("no client is accepted while 32 wait for their first bytes", async () => {
  const go = Promise.withResolvers<number>();
  const waiting = Array.from(
    { length: 32 },
    () => new MemoryConnection({ write: () => go.promise }),
  );
  const next = new MemoryConnection();
  const controller = new AbortController();
  const { signal } = controller;
  const server = startInMemory([...waiting, next], { signal });
  for (const _ of waiting) await server.connected.next();
  // A turn of the event loop, in which the next one could have been accepted.
  await new Promise((resolve) => setTimeout(resolve));
  assertEquals(server.listener.accepted, 32);
  go.resolve(encode(GREETING).length);
  await server.connected.next();
  controller.abort();
  await server.finished;
});

socketTest(
  "beyond maxClients a client waits, is not refused, and is served",
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

test("a client that reset before it was accepted costs no time", async () => {
  const { NotConnected, ConnectionReset, ConnectionAborted } = Deno.errors;
  const lost = [NotConnected, ConnectionReset, ConnectionAborted].flatMap(
    (type) => Array.from({ length: 100 }, () => new type("gone")),
  );
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const told = new Events<Error>();
  const began = performance.now();
  await using server = startInMemory([...lost, peer], {
    onAcceptError: told.push,
  });
  assertEquals((await server.over.next()).reply, "hello");
  assert(performance.now() - began < 5000);
  assertEquals(told.all, []);
});

test("out of descriptors, the server says so once, waits and goes on", async () => {
  const emfile = () => new Error("Too many open files (os error 24)");
  const peer = () => new MemoryConnection({ reads: ["hello", null] });
  const told = new Events<Error>();
  const began = performance.now();
  await using server = startInMemory(
    [emfile(), emfile(), peer(), emfile(), peer()],
    { onAcceptError: told.push },
  );
  assertEquals((await server.over.next()).reply, "hello");
  assert(performance.now() - began >= 190, "it waits between two tries");
  assertEquals((await server.over.next()).reply, "hello");
  assertEquals(told.all.map(({ message }) => message), [emfile().message]);
});

test("after a minute without trouble, new trouble is told", async () => {
  const told = new Events<Error>();
  let minute = 0;
  const now = performance.now.bind(performance);
  using _ = replace(performance, "now", () => now() + minute);
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const listener = [new Error("one"), peer, new Error("two")];
  await using server = startInMemory(listener, {
    maxClients: 1,
    onAcceptError: told.push,
    onOutcome: () => void (minute = 61_000),
  });
  assertEquals((await told.next()).message, "one");
  assertEquals((await told.next()).message, "two");
  await server.shutdown();
});

test("after an accept error, a shutdown ends the tries", async () => {
  const told = new Events<Error>();
  const server = startInMemory([new Error("full")], {
    onAcceptError: told.push,
  });
  await told.next();
  await server.shutdown();
  assertEquals(server.listener.accepted, 1);
});

// Ending

socketTest("a shutdown takes no new clients and finishes the old", async () => {
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
});

test("a client accepted while the server stops is closed, not served", async () => {
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
  "at the end of its block, `await using` has shut the server down",
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

socketTest("aborting ends the server and its exchanges at once", async () => {
  const controller = new AbortController();
  const server = start({ signal: controller.signal });
  using connection = await Deno.connect({ port: server.port });
  assertEquals(await readAll(connection), GREETING);
  controller.abort();
  await server.finished;
  assertEquals(server.over.all.map(({ outcome }) => outcome), ["timed-out"]);
  await assertRejects(
    () => exchange({ port: server.port }),
    Deno.errors.ConnectionRefused,
  );
});

/** A signal, and the listeners that are on it. */
function watched() {
  const { signal } = new AbortController();
  const left = new Set<unknown>();
  signal.addEventListener = (_: string, fn: unknown) => void left.add(fn);
  signal.removeEventListener = (_: string, fn: unknown) => void left.delete(fn);
  return { signal, left };
}

test("a server that has ended leaves nothing on its signal", async () => {
  const { signal, left } = watched();
  const server = startInMemory([], { signal });
  assertEquals(left.size, 1);
  await server.shutdown();
  assertEquals(left.size, 0);
});

test("a server aborted as soon as it listens ends", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const onListen = () => controller.abort();
  const server = startInMemory([], { signal, onListen });
  await server.finished;
});

test("a signal aborted before keeps the server from listening", () => {
  using _ = noSockets();
  const signal = AbortSignal.abort(new Error("too late"));
  assertThrows(() => serve({ signal }), Error, "too late");
});

test("a callback that throws or rejects is shown and stops nothing", async () => {
  const shown = new Events<unknown>();
  using _ = replace(console, "error", shown.push);
  const peer = () => new MemoryConnection({ reads: ["hello", null] });
  const over = new Events<string>();
  const server = startInMemory([peer(), new Error("full"), peer()], {
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

test("what a callback throws may be impossible to show", async () => {
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

test("serve refuses wrong options before it opens a socket", () => {
  using _ = noSockets();
  const numbers: Record<string, unknown[]> = {
    port: [-1, 1.5, 70_000, NaN, "8888"],
    timeout: [0, -1, NaN, -Infinity, 2_147_483_648, "10"],
    maxClients: [0, -1, 1.5, NaN, Infinity],
    maxReplyBytes: [0, -1, 1.5, NaN, Infinity],
  };
  for (const [name, values] of Object.entries(numbers)) {
    for (const value of values) {
      assertThrows(() => serve({ [name]: value }), RangeError, name);
    }
  }
  for (
    const [name, value] of [["hostname", ""], ["hostname", 5], [
      "greeting",
      null,
    ]] as const
  ) {
    assertThrows(() => serve({ [name]: value }), TypeError, name);
  }
  assertThrows(() => serve({ signal: {} as AbortSignal }), TypeError);
});

// Servers that fail

test("exchange refuses wrong options before it opens a socket", async () => {
  using _ = noSockets();
  const numbers: Record<string, unknown[]> = {
    port: [0, -1, 1.5, 70_000, NaN, "8888"],
    timeout: [0, -1, NaN, -Infinity, 2_147_483_648, "10"],
    wait: [-1, NaN, Infinity, 2_147_483_648, "1"],
    maxGreetingBytes: [0, -1, 1.5, NaN, Infinity],
  };
  for (const [name, values] of Object.entries(numbers)) {
    for (const value of values) {
      await assertRejects(() => exchange({ [name]: value }), RangeError, name);
    }
  }
  for (const name of ["hostname", "reply"]) {
    for (const value of ["", 5, null]) {
      await assertRejects(() => exchange({ [name]: value }), TypeError, name);
    }
  }
  await assertRejects(() => exchange({ signal: {} as AbortSignal }), TypeError);
});

socketTest("a server that closes without a greeting is an error", async () => {
  using listener = listen();
  const result = exchange({ port: listener.addr.port });
  (await listener.accept()).close();
  await assertRejects(() => result, Deno.errors.UnexpectedEof);
});

test("a greeting that breaks off is an error, whatever came before", async () => {
  const reads = ["half", new Deno.errors.ConnectionReset("reset")];
  const peer = new MemoryConnection({ reads });
  using _ = connectTo(peer);
  await assertRejects(() => exchange(), Deno.errors.ConnectionReset);
  assertEquals(peer.log.at(-1), "close");
});

test("a reply that can't be sent is an error", async () => {
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

  socketTest(`a greeting of ${limit} bytes, the limit, is taken`, async () => {
    const greeting = "x".repeat(limit);
    await using server = start({ greeting });
    assertEquals(
      await exchange({ port: server.port, maxGreetingBytes }),
      greeting,
    );
  });

  socketTest(`a greeting of ${limit + 1} bytes is an error`, async () => {
    await using server = start({ greeting: "x".repeat(limit + 1) });
    await assertRejects(
      () => exchange({ port: server.port, maxGreetingBytes }),
      Deno.errors.InvalidData,
    );
  });
}

socketTest("a server that says nothing runs out of time", async () => {
  using listener = listen();
  const result = exchange({ port: listener.addr.port, timeout: 50 });
  using connection = await listener.accept();
  await assertRejects(() => result, Deno.errors.TimedOut);
  assertEquals(await readAll(connection), "");
});

test("a server that keeps sending gets no more time", async () => {
  using _ = connectTo(dribbler());
  await assertRejects(() => exchange({ timeout: 50 }), Deno.errors.TimedOut);
});

test("a server that does not take the reply runs out of time", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null], write: never });
  using _ = connectTo(peer);
  await assertRejects(() => exchange({ timeout: 50 }), Deno.errors.TimedOut);
});

test("the time covers connecting", async () => {
  using _ = connecting(hang);
  await assertRejects(() => exchange({ timeout: 50 }), Deno.errors.TimedOut);
  // Waiting is for refused connections alone.
  await assertRejects(
    () => exchange({ timeout: 50, wait: 60_000 }),
    Deno.errors.TimedOut,
  );
});

socketTest(
  "with wait, the client finds a server that starts late",
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

test("the time of an exchange does not run while the client waits", async () => {
  let tries = 0;
  const peer = new MemoryConnection({ reads: ["hello", null] });
  using _ = connecting(() => {
    if (++tries > 3) return Promise.resolve(peer);
    return refused();
  });
  assertEquals(await exchange({ wait: 60_000, timeout: 40 }), "hello");
  assertEquals(tries, 4);
});

test("after a refusal, the next try has a deadline as well", async () => {
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

test("when the wait is over, a refusal is an error", async () => {
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

/** Where an exchange is when it is aborted: how to connect, and from where. */
const stages: Record<
  string,
  (abort: () => void) => {
    connect: (options: Deno.ConnectOptions) => Promise<unknown>;
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
  test(`an exchange aborted while ${stage} ends with the reason`, async () => {
    const reason = new Error("enough");
    const controller = new AbortController();
    const { connect, options } = at(() => controller.abort(reason));
    using _ = connecting(async (options) => await connect(options));
    const result = exchange({ ...options, signal: controller.signal });
    assertEquals(await result.catch((error) => error), reason);
  });
}

test("an exchange aborted before does not connect", async () => {
  using _ = noSockets();
  const signal = AbortSignal.abort(new Error("too late"));
  await assertRejects(() => exchange({ signal }), Error, "too late");
});

test("an exchange that has ended leaves nothing on its signal", async () => {
  const { signal, left } = watched();
  using _ = connectTo(new MemoryConnection({ reads: ["hello", null] }));
  const result = exchange({ signal });
  assertEquals(left.size, 1);
  await result;
  assertEquals(left.size, 0);
  await assertRejects(() => exchange({ signal }), Error);
  assertEquals(left.size, 0);
});

// The commands

socketTest(
  "the server prints what happens, and on a signal it ends",
  async () => {
    const { port, line, handlers, result } = await startServer(
      "--timeout",
      "1",
    );
    const is = (port: number | undefined, words: string) =>
      new RegExp(`^127\\.0\\.0\\.1:${port} ${words}$`);

    await exchange({ port });
    const [first] = await line(/^127\.0\.0\.1:(\d+) connected$/);
    await line(is(Number(first), `replied: ${REPLY}`));

    using quits = await Deno.connect({ port });
    await line(is(quits.localAddr.port, "connected"));
    await quits.closeWrite();
    await line(is(quits.localAddr.port, "left without a reply"));

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
  "on a signal, the server says how many clients it finishes",
  async () => {
    const { port, out, line, handlers, result } = await startServer("--quiet");
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

socketTest("a second signal ends the server at once, with 130", async () => {
  const { port, line, handlers, result } = await startServer();
  using silent = await Deno.connect({ port });
  await line(/ connected$/);
  handlers.get("SIGINT")!();
  await line(/^Stopping: 1 client to finish$/);
  handlers.get("SIGINT")!();
  await line(new RegExp(`:${silent.localAddr.port} timed out$`));
  await line(/^Served 1 client$/);
  assertEquals((await result()).code, 130);
});

test("a signal without a client ends the server", async () => {
  using _ = listening(() => new MemoryListener([]));
  const { line, handlers, result } = run(server);
  await line(/^Listening on \[::1\]:8$/);
  handlers.get("SIGINT")!();
  const { code, out } = await result();
  assertEquals(out.slice(1), [
    "Stopping: 0 clients to finish",
    "Served 0 clients",
  ]);
  assertEquals(code, 0);
});

/** Each way that an exchange can end, and what `--once` makes of it. */
const onces: [string, number, Behaviour, string[]?][] = [
  ["replied: hello", 0, { reads: ["hello", null] }],
  ["left without a reply", 0, { reads: [null] }],
  ["timed out", 1, {}, ["--timeout", "0.02"]],
  ["reset the connection", 1, { reads: [new Deno.errors.ConnectionReset("")] }],
  ["sent too long a reply", 1, { reads: ["x".repeat(LIMIT + 1)] }],
];

for (const [words, code, behaviour, args = []] of onces) {
  test(`with --once, a client that ${words} makes the exit code ${code}`, async () => {
    for (const quiet of [false, true]) {
      const peers = [0, 1].map(() => {
        const reads = behaviour.reads && [...behaviour.reads];
        return new MemoryConnection({ ...behaviour, reads });
      });
      const listener = new MemoryListener(peers);
      using _ = listening(() => listener);
      const command = run(server, "--once", ...args, ...quiet ? ["-q"] : []);
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

socketTest("the two commands talk to each other", async () => {
  const { port, result } = await startServer("--once", "--greeting", "hello");
  assertEquals(await client(["--port", `${port}`, "--reply", "hi"]), 0);
  const { code, out, err } = await result();
  assertEquals([code, err], [0, []]);
  const address = out.find((line) =>
    line.endsWith(" connected")
  )!.split(" ")[0];
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

socketTest("the client prints each line as it happens", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const { line, out, result } = run(client, "--port", `${port}`);
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

const nasty =
  "a\tb\r\n\x00\x07\x1b[2J\x7f\x85\x9b\u2028\u2029\u200e\u200f\u061c" +
  "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069好 👋\\";
const harmless = "a\\tb\\r\\n\\u0000\\u0007\\u001b[2J\\u007f\\u0085\\u009b" +
  "\\u2028\\u2029\\u200e\\u200f\\u061c\\u202a\\u202b\\u202c\\u202d\\u202e" +
  "\\u2066\\u2067\\u2068\\u2069好 👋\\";

test("what a client sent can do nothing to the server's terminal", async () => {
  for (
    const [reply, shown] of [
      [nasty, harmless],
      ["hi\n", "hi"],
      ["hi\r\n", "hi"],
      ["\n", ""],
      ["hi\n\n", "hi\\n"],
      ["hi\r", "hi\\r"],
    ] as const
  ) {
    const peer = new MemoryConnection({ reads: [reply, null] });
    using _ = listening(() => new MemoryListener([peer]));
    const { out } = await run(server, "--once").result();
    assertEquals(out[2], `[::1]:7 replied: ${shown}`);
  }
});

test("what a server sent can do nothing to the client's terminal", async () => {
  for (const args of [[], ["--quiet"]]) {
    using _ = connectTo(new MemoryConnection({ reads: [nasty, "\n", null] }));
    const { code, out } = await run(client, ...args).result();
    assertEquals(code, 0);
    assertEquals(
      out,
      args.length ? [harmless] : [
        "Connected to [::1]:7",
        `Greeting: ${harmless}`,
        `Replied: ${REPLY}`,
      ],
    );
  }
});

test("the client shows its own reply on one line, too", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  using _ = connectTo(peer);
  const { out } = await run(client, "--reply=a\nb").result();
  assertEquals(out.at(-1), "Replied: a\\nb");
  assertEquals(new Uint8Array(peer.sent), encode("a\nb"));
});

test("out of descriptors, the server says so once on stderr", async () => {
  const full = () => new Error("Too many open files (os error 24)");
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const listener = new MemoryListener([full(), full(), peer]);
  using _ = listening(() => listener);
  const { code, out, err } = await run(server, "--once").result();
  assertEquals([code, out.at(-1), err.length], [0, "Served 1 client", 1]);
  assertMatch(err[0]!, /^error: .*: Too many open files \(os error 24\)$/);
});

test("a line that can't be written is lost, and nothing else is", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  const give = () => new MemoryListener([peer]);
  using _listen = listening(give);
  let log = "";
  using _log = replace(console, "log", (line: string) => {
    // The disk is full in the middle of this line.
    log += line.includes("connected") ? line.slice(0, 5) : `${line}\n`;
    if (line.includes("connected")) throw new Error("no space left");
  });
  assertEquals(await server(["--once"]), 0);
  assertEquals(log.split("\n"), [
    "Listening on [::1]:8",
    "[::1]",
    "[::1]:7 replied: hello",
    "Served 1 client",
    "",
  ]);
});

test("an error that can't be written changes no exit code", async () => {
  using _ = replace(console, "error", () => {
    throw new Error("no space left");
  });
  assertEquals(await server(["--bogus"]), 2);
  assertEquals(await client(["--bogus"]), 2);
});

test("where nothing can be printed, the client still does the exchange", async () => {
  const peer = new MemoryConnection({ reads: ["hello", null] });
  using _connect = connectTo(peer);
  using _log = replace(console, "log", () => {
    throw new Error("no space left");
  });
  assertEquals(await client([]), 0);
  assertEquals(new Uint8Array(peer.sent), encode(REPLY));
});

// Command lines

/** A wrong command line, and what the error must name. */
type Wrong = [args: string[], ...named: string[]];

const wrongValues = (flag: string, ...values: string[]): Wrong[] =>
  values.map((value) => [[`${flag}=${value}`], flag, `not "${value}"`]);

const wrong: Wrong[] = [
  [["--bogus"], '"--bogus"'],
  [["--bogus=1"], '"--bogus=1"'],
  [["-x"], '"-x"'],
  [["--no-quiet"], '"--no-quiet"'],
  [["stray"], '"stray"'],
  [["-"], '"-"'],
  [[""], '""'],
  [["--", "stray"], '"stray"'],
  [["--", "--quiet"], '"--quiet"'],
  [["bad\n\x1b[2J"], '"bad\\n\\u001b[2J"'],
  [["--port"], "--port"],
  [["--port="], "--port"],
  [["-p"], "--port"],
  [["--host"], "--host"],
  [["--host", ""], "--host"],
  [["--host="], "--host"],
  [["--timeout"], "--timeout"],
  [["--timeout", "-1"], "--timeout"],
  ...wrongValues("--port", "x", "1.5", "-1", "65536", "1e3", "0x50", " 80"),
  ...wrongValues("--timeout", "0", "-1", "x", "NaN", "Infinity", "2147484"),
  ...wrongValues("--timeout", " ", "1s"),
];
const wrongForServer: Wrong[] = [
  ...wrong,
  [["--greeting"], "--greeting"],
  [["--greeting", "--once"], "--greeting"],
  [["--greeting="], "--greeting"],
  [["--reply=hi"], '"--reply=hi"'],
  ...wrongValues("--max-clients", "0", "-1", "1.5", "x", "1e3"),
];
const wrongForClient: Wrong[] = [
  ...wrong,
  [["--reply"], "--reply"],
  [["--reply="], "--reply"],
  [["--once"], '"--once"'],
  ...wrongValues("--port", "0"),
  ...wrongValues("--wait", "-1", "x", "NaN", "Infinity", "2147484", " "),
];

for (
  const [name, main, cases] of [
    ["server", server, wrongForServer],
    ["client", client, wrongForClient],
  ] as const
) {
  test(`a wrong ${name} command line is one line and exit code 2`, async () => {
    using _ = noSockets();
    for (const [args, ...named] of cases) {
      const { code, out, err } = await run(main, ...args).result();
      assertEquals([args, code, out, err.length], [args, 2, [], 1]);
      assertMatch(err[0]!, /^error: .*; see --help$/);
      for (const part of named) {
        assert(err[0]!.includes(part), `${err[0]} should name ${part}`);
      }
    }
  });

  test(`the ${name}'s --help goes to stdout, whatever else is there`, async () => {
    for (const args of [["--help"], ["-h"], ["-h", "--bogus", "--port=x"]]) {
      const { code, out, err } = await run(main, ...args).result();
      assertEquals([code, err], [0, []]);
      const help = out.join("\n");
      assertMatch(help, new RegExp(`usage: deno run --allow-net ${name}\\.ts`));
      assertMatch(
        help,
        new RegExp(`example: deno run --allow-net ${name}\\.ts --`),
      );
      const flags = name === "server"
        ? {
          host: "127.0.0.1",
          port: 8888,
          greeting: GREETING,
          timeout: 10,
          "max-clients": 1024,
          once: "off",
          quiet: "off",
        }
        : {
          host: "127.0.0.1",
          port: 8888,
          reply: REPLY,
          timeout: 10,
          wait: 0,
          quiet: "off",
        };
      for (const [flag, value] of Object.entries(flags)) {
        const line = help.split("\n").find((line) =>
          line.startsWith(`  --${flag}`)
        );
        assert(line?.endsWith(`(${value})`), `${flag}: ${line}`);
      }
    }
  });
}

test("flags reach Deno.listen, and the last of a repeated one counts", async () => {
  const { AddrInUse } = Deno.errors;
  const asked: unknown[] = [];
  using _ = listening((options) => {
    asked.push(options);
    throw new AddrInUse("in use");
  });
  await run(server).result();
  await run(server, "--host=::1", "-p", "1", "--port", "08080").result();
  assertEquals(asked, [
    { hostname: "127.0.0.1", port: 8888, tcpBacklog: 4096 },
    { hostname: "::1", port: 8080, tcpBacklog: 4096 },
  ]);
});

test("--max-clients bounds how many are served at once", async () => {
  const go = Promise.withResolvers<number>();
  const write = () => go.promise;
  const peers = ["one", "two"].map((reply) =>
    new MemoryConnection({ reads: [reply, null], write })
  );
  const listener = new MemoryListener(peers);
  using _ = listening(() => listener);
  const { out, line, handlers, result } = run(server, "--max-clients=1");
  await line(/^Listening/);
  await line(/ connected$/);
  // A turn of the event loop, in which the second could have been accepted.
  await new Promise((resolve) => setTimeout(resolve));
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

/** The delays of all timers that are set until the end of the block. */
function timers() {
  const delays: number[] = [];
  const set = globalThis.setTimeout;
  const note = (fn: () => void, delay: number) => {
    delays.push(delay);
    return set(fn, delay);
  };
  return { delays, ...replace(globalThis, "setTimeout", note as never) };
}

test("--timeout is in seconds, 10 by default, on both sides", async () => {
  const cases: [string[], number][] = [[[], 10_000], [["--timeout=2.5"], 2500]];
  for (const [args, delay] of cases) {
    const peer = () => new MemoryConnection({ reads: ["hello", null] });
    const listener = new MemoryListener([peer()]);
    using timer = timers();
    using _listen = listening(() => listener);
    using _connect = connectTo(peer());
    await run(server, "--once", ...args).result();
    await run(client, ...args).result();
    assertEquals(timer.delays, [delay, delay]);
  }
});

test("--wait is in seconds", async () => {
  let tries = 0;
  using _ = connecting(() => {
    const peer = new MemoryConnection({ reads: ["hello", null] });
    if (++tries === 2) return Promise.resolve(peer);
    return refused();
  });
  assertEquals((await run(client, "--wait=60").result()).code, 0);
  assertEquals(tries, 2);
  assertEquals((await run(client, "--wait=0.001").result()).code, 1);
  assert(tries <= 4, `${tries} tries`);
});

/** Gives what a command says of an error of `Deno.listen` or `Deno.connect`. */
async function said(main: typeof client, error: Error, ...args: string[]) {
  const fail = (): never => {
    throw error;
  };
  using _l = listening(fail);
  using _c = connecting(() => Promise.try(fail));
  const { code, out, err } = await run(main, ...args).result();
  assertEquals([code, out, err.length], [1, [], 1]);
  return err[0]!;
}

test("where the server can't listen, it says why and the way out", async () => {
  const { AddrInUse, AddrNotAvailable, NotCapable, PermissionDenied } =
    Deno.errors;
  const cases: [Error, string[], RegExp][] = [
    [new AddrInUse(""), [], /^error: 127\.0\.0\.1:8888 .* --port/],
    [new AddrInUse(""), ["--host=::1"], /^error: \[::1\]:8888 /],
    [new AddrInUse(""), ["--host=[::1]"], /^error: \[::1\]:8888 /],
    [new PermissionDenied(""), ["-p80"], / 127\.0\.0\.1:80; .* --port/],
    [
      new AddrNotAvailable(""),
      ["--host=192.0.2.1"],
      / 192\.0\.2\.1:8888 .* --host/,
    ],
    [new NotCapable(""), [], /with --allow-net=127\.0\.0\.1:8888$/],
    [
      new Error("failed to look up"),
      ["--host=no.such"],
      / no\.such:8888: failed to look up$/,
    ],
  ];
  for (const [error, args, pattern] of cases) {
    assertMatch(await said(server, error, ...args), pattern);
  }
});

test("where the client can't do it, it says why and the way out", async () => {
  const { ConnectionRefused, NotCapable, TimedOut } = Deno.errors;
  const { BrokenPipe, ConnectionAborted, ConnectionReset } = Deno.errors;
  const at = "127\\.0\\.0\\.1:8888";
  const cases: [Error, RegExp][] = [
    [new ConnectionRefused(""), new RegExp(`^error: .* ${at}; .* --wait`)],
    [new TimedOut(""), new RegExp(`^error: ${at} took too long; .* --timeout`)],
    [new NotCapable(""), new RegExp(`^error: .* ${at}; .*--allow-net=${at}$`)],
    [new Error("failed to look up"), new RegExp(`^error: .* ${at}: failed`)],
    ...[BrokenPipe, ConnectionAborted, ConnectionReset].map((type) =>
      [new type(""), new RegExp(`^error: ${at} reset`)] as [Error, RegExp]
    ),
  ];
  for (const [error, pattern] of cases) {
    assertMatch(await said(client, error), pattern);
  }
});

socketTest("a port in use is an error that names it", async () => {
  using listener = listen();
  const { port } = listener.addr;
  const { code, err } = await run(server, "--port", `${port}`).result();
  assertEquals([code, err.length], [1, 1]);
  assertMatch(
    err[0]!,
    new RegExp(`^error: 127\\.0\\.0\\.1:${port} is in use; .* --port`),
  );
});

socketTest("a host that can't be found is an error that names it", async () => {
  for (const main of [server, client]) {
    const { code, err } = await run(main, "--host", "no.such.host.invalid")
      .result();
    assertEquals([code, err.length], [1, 1]);
    assertMatch(err[0]!, /^error: .*no\.such\.host\.invalid:8888/);
  }
});

socketTest(
  "what goes wrong with a real server is one line that names it",
  async () => {
    using listener = listen();
    const { port } = listener.addr;
    const at = `127\\.0\\.0\\.1:${port}`;
    const failing = async (pattern: RegExp, ...args: string[]) => {
      const { code, err } = await run(client, "-qp", `${port}`, ...args)
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
