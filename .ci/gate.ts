/**
 * What only processes show: the two commands, TLS and Unix sockets, which need more
 * permissions than net, and each program of the two pages. One rule a test.
 *
 * - {@linkcode Process}: a program that was started. What it printed on stderr stands
 *   in its failures, or else in the output of its test, at whose end it is killed.
 * - {@linkcode Client}: a raw TCP peer. It knows nothing of `server.ts`.
 * - {@linkcode Folder}: a temporary one, with copies of both scripts, and programs.
 *
 * Helpers come last. To run: `deno test -A .ci/gate.ts`. By its path, as `deno test`
 * takes up a name that ends in `_test.ts` by itself, without these permissions.
 *
 * @module
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { connect } from "node:net";
import { greet, Peer, serve } from "../server.ts";

const ROOT = await Deno.realPath(`${import.meta.dirname}/..`);
const STD = await flagsForStd();
const GREETING = "你好,客戶端,我是服務器";
const REPLY = "你好服務器";
const ENGLISH = "README.md";
const LESSON = ".github/lesson.zh-TW.md";
const PAGES = [ENGLISH, LESSON];
const LONG = "x".repeat(65_000); // two such lines are more than a pipe holds
const STOPS = /Stopping: \d+ clients? to finish/;
const NO_SPACE = "error: cannot print: No space left on device (os error 28)\n";
const NO_READER = "error: cannot print: nobody reads the lines\n";

// Both commands

Deno.test("both commands: they tell the exchange line by line, and end with 0", async () => {
  await using server = script("server.ts", "--port", "0", "--once");
  const port = await listening(server);
  await using client = script("client.ts", "--port", port);
  await client.next(`Connected to 127.0.0.1:${port}`);
  await client.next(`Greeting: ${GREETING}`);
  await client.next(`Replied: ${REPLY}`);
  await client.ended();
  const [, address] = await server.next(/(127\.0\.0\.1:\d+) connected/);
  await server.next(`${address} replied: ${REPLY}`);
  await server.next("Served 1 client");
  await server.ended();
});

Deno.test("both commands: they need no permission but their address", async () => {
  const address = `127.0.0.1:${freePort()}`;
  const port = address.slice(10);
  const run = (...args: string[]) =>
    start(Deno.execPath(), ["run", "--no-prompt", ...STD, ...args]);
  for (const [name, verb] of [["server", "listen"], ["client", "connect"]]) {
    await using refused = run(`${name}.ts`, "--port", port);
    const advice = `run with --allow-net=${address}`;
    const preposition = name === "server" ? "on" : "to";
    await refused.ended(
      1,
      `error: no permission to ${verb} ${preposition} ${address}; ${advice}\n`,
    );
  }
  const allowed = `--allow-net=${address}`;
  await using server = run(allowed, "server.ts", "--port", port, "--once");
  await listening(server);
  await using client = run(allowed, "client.ts", "--port", port, "--quiet");
  await client.next(GREETING);
  await client.ended();
});

Deno.test("both commands: --wait connects as soon as the server listens", async () => {
  const port = freePort();
  await using client = script("client.ts", "--wait", "60", "--port", port);
  await sleep(500);
  await using server = script("server.ts", "--port", port, "--once", "--quiet");
  await listening(server);
  await client.next(`Connected to 127.0.0.1:${port}`);
  await client.next(`Greeting: ${GREETING}`);
  await client.next(`Replied: ${REPLY}`);
  await client.ended();
  await server.next("Served 1 client");
  await server.ended();
});

Deno.test("both commands: 0 is success, 1 a failure, 2 a wrong flag", async () => {
  using taken = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const cases: [number, string, string[], RegExp][] = [
    [1, "client.ts", ["-p", freePort()], /error: nothing listens on .*\n/],
    [2, "client.ts", ["--prot", "1"], /error: unexpected .*; see --help\n/],
    [1, "server.ts", ["-p", `${taken.addr.port}`], /error: .* is in use; .*\n/],
    [2, "server.ts", ["-p", "x"], /error: --port must be .*; see --help\n/],
  ];
  for (const [code, name, args, errors] of cases) {
    await using command = script(name, ...args);
    await command.ended(code, errors);
  }
  for (const name of ["client.ts", "server.ts"]) {
    await using command = script(name, "--help");
    assert.match(await command.rest(), /usage: deno run --allow-net /);
    await command.ended();
  }
});

// server.ts

Deno.test("server.ts: --once ends with its client: 0 where it replied or left, else 1", async () => {
  const cases: [number, string, (client: Client) => unknown][] = [
    [0, "replied: hi", (client) => client.end("hi")],
    [0, "left without a reply", (client) => client.end()],
    [1, "timed out; so far: so", (client) => client.write("so")],
  ];
  for (const [code, outcome, act] of cases) {
    const flags = ["--port", "0", "--once", "--timeout", "0.5"];
    await using server = script("server.ts", ...flags);
    using client = await Client.dial(await listening(server));
    assert.equal(await client.rest(), GREETING);
    await act(client);
    await server.next(/127\.0\.0\.1:\d+ connected/);
    assert.match(await server.line(), new RegExp(` ${outcome}$`));
    await server.next("Served 1 client");
    await server.ended(code);
  }
});

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  Deno.test(`server.ts: after ${signal} it accepts no more, its clients finish, and it ends with 0`, async () => {
    await using server = script("server.ts", "--port", "0");
    const port = await listening(server);
    using client = await Client.dial(port);
    assert.equal(await client.rest(), GREETING);
    await server.next(/127\.0\.0\.1:\d+ connected/);
    server.kill(signal);
    await server.next("Stopping: 1 client to finish");
    await Client.isRefused(port);
    await client.end("still heard");
    await server.next(/127\.0\.0\.1:\d+ replied: still heard/);
    await server.next("Served 1 client");
    await server.ended();
  });

  Deno.test(`server.ts: a second ${signal} ends it at once`, async () => {
    await using server = script("server.ts", "--port", "0");
    using client = await Client.dial(await listening(server));
    await server.next(/127\.0\.0\.1:\d+ connected/);
    server.kill(signal);
    await server.next("Stopping: 1 client to finish");
    await sleep(300);
    server.kill(signal);
    assert.equal((await server.status()).signal, signal);
    await client.rest();
  });
}

Deno.test("server.ts: a reply that came while it stood still is heard, though its time is up", async () => {
  const flags = ["--port", "0", "--timeout", "1", "--once"];
  await using server = script("server.ts", ...flags);
  using client = await Client.dial(await listening(server));
  await server.next(/127\.0\.0\.1:\d+ connected/);
  assert.equal(await client.rest(), GREETING);
  server.kill("SIGSTOP");
  await client.end(REPLY);
  await sleep(1_500);
  server.kill("SIGCONT");
  await server.next(new RegExp(`127\\.0\\.0\\.1:\\d+ replied: ${REPLY}`));
  await server.next("Served 1 client");
  await server.ended();
});

Deno.test("server.ts: a reader who stalls holds up no client, and reads every line later", async () => {
  await using server = script("server.ts", "--port", "0");
  const port = await listening(server);
  const reply = "x".repeat(200);
  for (let i = 0; i < 900; i++) { // 900 times 260 bytes: the pipe holds 65,536
    using client = await Client.dial(port);
    assert.equal(await client.rest(), GREETING);
    await client.end(reply);
  }
  server.kill("SIGTERM");
  const lines = (await server.rest()).split("\n");
  const count = (end: string) => lines.filter((l) => l.endsWith(end)).length;
  assert.equal(count(" connected"), 900);
  assert.equal(count(` replied: ${reply}`), 900);
  assert.match(lines.at(-3)!, STOPS);
  assert.deepEqual(lines.slice(-2), ["Served 900 clients", ""]);
  await server.ended();
});

Deno.test("server.ts: a reader who never reads does not keep it from ending", async () => {
  await using server = script("server.ts", "--port", "0");
  const port = await listening(server);
  for (let i = 0; i < 4; i++) {
    using client = await Client.dial(port);
    await client.rest();
    await client.end(LONG);
  }
  server.kill("SIGTERM");
  const { code } = await server.status();
  assert.deepEqual([code, server.errors], [0, NO_READER]);
});

Deno.test("server.ts: on a full disk it goes on, and says so once; --once ends with 1", async () => {
  for (const once of [false, true]) {
    const port = freePort();
    const flags = ["--port", port, ...(once ? ["--once"] : [])];
    await using server = redirected(">/dev/full", ["server.ts", ...flags]);
    for (let i = 0; i < (once ? 1 : 3); i++) {
      using client = await Client.dial(port);
      assert.equal(await client.rest(), GREETING);
      await client.end(REPLY);
    }
    if (!once) server.kill("SIGTERM");
    await server.ended(once ? 1 : 0, NO_SPACE);
  }
});

Deno.test("server.ts: where its reader has closed the pipe it goes on, and says so once", async () => {
  await using server = script("server.ts", "--port", "0");
  const port = await listening(server);
  await server.closeOutput();
  for (let i = 0; i < 3; i++) {
    using client = await Client.dial(port);
    assert.equal(await client.rest(), GREETING);
    await client.end(REPLY);
  }
  server.kill("SIGTERM");
  await server.ended(0, "error: cannot print: Broken pipe (os error 32)\n");
});

// client.ts

Deno.test("client.ts: a standstill of its own is neither the server's time nor its silence", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const flags = ["--timeout", "2.5", "--port", `${listener.addr.port}`];
  await using client = script("client.ts", ...flags);
  using server = new Client(await inTime("a client", listener.accept()));
  await client.next(/Connected to .*/);
  await server.write("hel");
  client.kill("SIGSTOP");
  await sleep(3_000);
  client.kill("SIGCONT");
  await sleep(300);
  await server.end("lo");
  await client.next("Greeting: hello"); // and no note on stderr
  await client.next(`Replied: ${REPLY}`);
  assert.equal(await server.rest(), REPLY);
  await client.ended();
});

Deno.test("client.ts: where it cannot print, it says why, and ends with 1", async () => {
  await using server = script("server.ts", "--port", "0", "--quiet");
  const port = await listening(server);
  await using onFullDisk = redirected(">/dev/full", ["client.ts", "-p", port]);
  await onFullDisk.ended(1, NO_SPACE);
  await using intoClosed = script("client.ts", "--port", port);
  await intoClosed.closeOutput();
  await intoClosed.ended(1, "error: cannot print: Broken pipe (os error 32)\n");
});

/** What servers in Python do after their greeting. */
const PYTHON_SERVERS = {
  "sends and then waits": "print(peer.recv(1024).decode())",
  "sends and half-closes":
    "peer.shutdown(socket.SHUT_WR); print(peer.recv(1024).decode())",
  "sends and closes with the reply unread": "",
};
for (const [habit, steps] of Object.entries(PYTHON_SERVERS)) {
  Deno.test(`client.ts: a server in Python that ${habit}`, async () => {
    await using server = python(`
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
peer, _ = listener.accept()
peer.sendall("${GREETING}".encode())
${steps}
peer.close()`);
    const [port] = await server.next(/\d+/);
    await using client = script("client.ts", "--port", port!);
    await client.next(`Connected to 127.0.0.1:${port}`);
    await client.next(`Greeting: ${GREETING}`);
    await client.next(`Replied: ${REPLY}`);
    const isSilent = habit.endsWith("waits");
    await client.ended(0, isSilent ? /note: the server did not end .*\n/ : "");
    if (steps) await server.next(REPLY);
    await server.ended();
  });
}

// No registry

for (const name of ["server.ts", "client.ts"]) {
  Deno.test(`no registry: ${name} says what to use in its place`, async () => {
    await using folder = await Folder.create();
    await using command = folder.startWithoutRegistry(name);
    const advice = `in a clone, use: deno task run ${name}`;
    const message = "@std/cli could not be had from JSR";
    await command.ended(1, `error: ${message}; ${advice}\n`);
  });
}

Deno.test("no registry: a program that imports the scripts runs", async () => {
  await using folder = await Folder.create();
  await folder.write(
    "own.ts",
    `import { exchange } from "./client.ts";
    import { greet, serve } from "./server.ts";
    await using server = serve({
      port: 0,
      handler: async (client) => console.log(await greet(client, "hello")),
    });
    console.log(await exchange({ port: server.addr.port, reply: "hi" }));`,
  );
  await using own = folder.startWithoutRegistry("own.ts");
  assert.deepEqual((await own.rest()).split("\n").sort(), ["", "hello", "hi"]);
  await own.ended();
});

// TLS

Deno.test("TLS: lines go both ways, to and from a client that checks the certificate", async () => {
  await using folder = await Folder.create();
  const { listener, connect } = await folder.listenTls();
  await using server = serve({ listener, handler: sendBack });
  await using peer = new Peer(await connect());
  for (const line of ["one", "二", "3"]) {
    await peer.send(`${line}\n`);
    assert.equal(await peer.readLine(), line);
  }
  assert.equal(server.clients, 1);
  await peer.closeWrite();
  assert.equal(await peer.readLine(), null);
});

Deno.test("TLS: greet half-closes, and reads the reply to its end", async () => {
  await using folder = await Folder.create();
  const { listener, connect } = await folder.listenTls();
  const replied = Promise.withResolvers<string>();
  await using _ = serve({
    listener,
    handler: (client) => greet(client, "hello").then(replied.resolve),
    onError: replied.reject,
  });
  await using peer = new Peer(await connect());
  assert.equal(await peer.readAll(), "hello");
  await peer.send("h");
  await peer.send("i");
  await peer.closeWrite();
  assert.equal(await inTime("the reply", replied.promise), "hi");
});

Deno.test("TLS: peers that never shake hands hold no other up, and their time is over", async () => {
  await using folder = await Folder.create();
  const { listener, connect, port } = await folder.listenTls();
  const errors: string[] = [];
  await using server = serve({
    listener,
    handler: sendBack,
    timeout: 2_000,
    onError: (error) => errors.push(`${error}`),
  });
  using silent = new DisposableStack();
  for (let i = 0; i < 64; i++) {
    silent.use(await Deno.connect({ hostname: "127.0.0.1", port }));
  }
  await using peer = new Peer(await connect(), { timeout: 1_000 });
  await peer.send("hello\n");
  assert.equal(await peer.readLine(), "hello");
  await peer[Symbol.asyncDispose]();
  for (let i = 0; i < 100 && server.clients > 0; i++) await sleep(50);
  assert.deepEqual(errors, Array(64).fill("TimeoutError: time is up"));
});

/** What a peer in Python sends, whether it says that it ends, and what is told. */
const TLS_ENDS: [string, string, boolean, string[]][] = [
  ["between two lines, without close_notify, is an end", "one\n", false, []],
  [
    "within a line, without close_notify, is told",
    "one\nhal",
    false,
    ["UnexpectedEof"],
  ],
  ["within a line, with close_notify, ends the last one", "one\nhal", true, []],
];
for (const [rule, text, isSaid, told] of TLS_ENDS) {
  Deno.test(`TLS: to leave ${rule}`, async () => {
    await using folder = await Folder.create();
    const { listener, port } = await folder.listenTls();
    const lines: string[] = [];
    const errors: string[] = [];
    await using server = serve({
      listener,
      handler: async (client) => {
        for await (const line of client) {
          lines.push(line);
          await client.send(`${line}\n`);
        }
      },
      onError: (error) => errors.push((error as Error).name),
    });
    await using peer = python(
      `
import socket, ssl
context = ssl.create_default_context(cafile="${folder.path}/cert.pem")
tcp = socket.create_connection(("127.0.0.1", ${port}))
peer = context.wrap_socket(tcp, server_hostname="localhost", suppress_ragged_eofs=False)
peer.sendall(${JSON.stringify(text)}.encode())
print(peer.recv(1024).decode(), end="", flush=True)
try: ${isSaid ? "peer.unwrap()" : "pass"}
except ssl.SSLError: pass # The answer came after its close_notify.
peer.shutdown(socket.SHUT_WR) # a FIN, and no close_notify`,
    );
    await peer.next("one");
    await peer.ended();
    await inTime("the end of the client", server.shutdown());
    assert.deepEqual(lines, isSaid ? ["one", "hal"] : ["one"]);
    assert.deepEqual(errors, told);
  });
}

// Unix

Deno.test("Unix: lines go both ways, and server.addr has the path", async () => {
  await using folder = await Folder.create();
  const path = `${folder.path}/socket`;
  const listener = Deno.listen({ transport: "unix", path });
  await using server = serve({ listener, handler: sendBack });
  assert.equal(server.addr.path, path);
  const connection = await Deno.connect({ transport: "unix", path });
  await using peer = new Peer(connection);
  await peer.send("one\n二\n");
  assert.deepEqual([await peer.readLine(), await peer.readLine()], [
    "one",
    "二",
  ]);
  await peer.closeWrite();
  assert.equal(await peer.readLine(), null);
});

Deno.test("Unix: showError shows the path; net, read and write are all that it needs", async () => {
  await using folder = await Folder.create();
  await folder.write(
    "unix.ts",
    `import { serve } from "./server.ts";
    const path = "./socket";
    const listener = Deno.listen({ transport: "unix", path });
    await using server = serve({ listener, handler: (client) => client.readAll(), limit: 2 });
    using client = await Deno.connect({ transport: "unix", path });
    await client.write(new Uint8Array(3));`,
  );
  const allowed = ["--allow-read", "--allow-write"];
  await using unix = folder.startAllowing(allowed, "unix.ts");
  await unix.ended(
    0,
    `${folder.path}/socket InvalidData: 3 bytes, at most 2\n`,
  );
});

// The programs of both pages

for (const page of PAGES) {
  Deno.test(`${page}: small_server.ts greets client.ts, small_client.ts shows the greeting`, async () => {
    const names = ["small_server.ts", "small_client.ts"];
    await using folder = await Folder.of(page, ...names);
    const greeted = [["client.ts", "--wait", "60", "-q"], ["small_client.ts"]];
    for (const client of greeted) {
      await using server = folder.start("small_server.ts");
      if (page === LESSON) await server.next("等待連線");
      else await sleep(500); // It prints nothing.
      await using shown = folder.start(...client);
      await shown.next(GREETING);
      await shown.ended();
      if (page === LESSON) await server.next(/已連線 \d+/);
      await server.ended();
    }
    folder.assertShown("small_client.ts", `${GREETING}\n`);
  });

  Deno.test(`${page}: next_server.ts serves one after another, beside a silent one`, async () => {
    const names = ["next_server.ts", "small_client.ts"];
    await using folder = await Folder.of(page, ...names);
    await using server = folder.start("next_server.ts");
    using _ = await folder.dial();
    for (let i = 0; i < 2; i++) {
      await using client = folder.start("small_client.ts");
      await client.next(GREETING);
      await client.ended();
      await server.next(REPLY);
    }
  });
}

Deno.test("a client that resets ends next_server.ts, and costs server.ts a line", async () => {
  await using folder = await Folder.of(
    LESSON,
    "next_server.ts",
    "reset_client.ts",
  );
  await using next = folder.start("next_server.ts");
  using _ = await folder.dial(); // It listens.
  await using first = folder.start("reset_client.ts");
  await first.ended();
  assert.equal((await next.status()).code, 1);
  folder.assertShown("next_server.ts", next.errors);

  await using server = folder.start("server.ts");
  await listening(server);
  await using second = folder.start("reset_client.ts");
  await second.ended();
  await server.next(/127\.0\.0\.1:\d+ connected/);
  await server.next(/127\.0\.0\.1:\d+ reset the connection/);
});

Deno.test("a read gives no more than fits: small_client.ts shows the start of a greeting", async () => {
  await using english = await Folder.of(ENGLISH, "small_client.ts");
  const greeting = "end".padStart(2_000);
  await using server = english.start("server.ts", "--greeting", greeting);
  await listening(server);
  await using client = english.start("small_client.ts");
  await client.next(greeting.slice(0, 1_024));
  await client.ended();

  await using lesson = await Folder.of(
    LESSON,
    "small_server.ts",
    "small_client.ts",
  );
  await lesson.change("small_client.ts", "1024", "10");
  await using small = lesson.start("small_server.ts");
  await small.next("等待連線");
  await using ten = lesson.start("small_client.ts");
  lesson.assertShown("small_client.ts", await ten.rest());
});

// The programs of the README

Deno.test("kv_server.ts, kv_client.ts: they answer, and an idle client does not hold up the stop", async () => {
  await using folder = await Folder.of(ENGLISH, "kv_server.ts", "kv_client.ts");
  await using server = folder.start("kv_server.ts");
  await server.next(`Listening on port ${folder.port}`);
  using idle = await folder.dial();
  await idle.write("GET city\nFORGET city\n");
  assert.equal(await idle.line(), "(none)");
  assert.equal(await idle.line(), "error: SET key value, or GET key");
  await using client = folder.start(
    "kv_client.ts",
    "SET city 台北",
    "GET city",
  );
  folder.assertShown("kv_client.ts", await client.rest());
  await client.ended();
  server.kill("SIGINT");
  assert.equal(await inTime("its end", idle.rest(), 2_000), "");
  await server.ended();
});

Deno.test("frames.ts: frames go there and back, and one that is too long is told", async () => {
  await using folder = await Folder.of(ENGLISH, "frames.ts");
  await folder.write(
    "back.ts",
    `import { readFrame, sendFrame } from "./frames.ts";
    import { serve } from "./server.ts";
    serve({
      limit: 9,
      onError: (error) => console.log(\`\${error}\`),
      handler: async (client) => {
        ${await blockWith(ENGLISH, "await client.hasMore()")}
      },
    });`,
  );
  await using server = folder.start("back.ts");
  using client = await folder.dial();
  const frames = "\0\0\0\x02hi" + "\0\0\0\0" + "\0\0\0\x09123456789";
  await client.write(frames + "\0\0\0\x0a");
  assert.equal(await client.rest(), frames);
  await server.next("InvalidData: 10 bytes, at most 9");
});

Deno.test("chat_server.ts, chat_clock.ts: who reads hears all, one who does not is ended; the clock comes back", async () => {
  const names = ["chat_server.ts", "chat_clock.ts"];
  await using folder = await Folder.of(ENGLISH, ...names);
  await using chat = folder.start("chat_server.ts");
  await chat.next(`Listening on port ${folder.port}`);
  using clients = new DisposableStack();
  const [, two, three] = (await folder.dialInTurn(3)) // The first does not read.
    .map((client) => clients.use(client)) as [Client, Client, Client];
  const pasted = Array.from({ length: 1_000 }, (_, i) => `${i} `.padEnd(8_000));
  const said = pasted.map((line) => `client 4: ${line}`);
  const expected = ["client 4 came", ...said, "client 4 left"];
  const heard = [two, three].map(async (member) => {
    for (const line of expected) assert.equal(await member.line(), line);
  });
  using four = await folder.dial();
  await Promise.all([four.end(`${pasted.join("\n")}\n`), ...heard]);
  assert(await chat.peak() < 200, `it took ${await chat.peak()} MB`);

  await using clock = folder.start("chat_clock.ts");
  await clock.next("connected");
  assert.equal(await two.line(), "client 5 came");
  assert.match(await two.line() ?? "", /^client 5: .*GMT/);
  await two.write("hello\n");
  await clock.next("client 2 came");
  await clock.next("client 2: hello");
  chat.kill("SIGTERM");
  await clock.next("goodbye");
  for (const member of [two, three]) {
    assert.match(await member.rest(), /(^|\n)goodbye\n$/);
  }
  await chat.ended(0, /127\.0\.0\.1:\d+ Error: does not read\n/);

  await using again = folder.start("chat_server.ts");
  await again.next(`Listening on port ${folder.port}`);
  let line: string;
  do [line] = await clock.next(/ConnectionRefused: .*|connected/) as [
    string,
  ]; while (line !== "connected");
  again.kill("SIGTERM");
  await again.ended();
});

Deno.test("jobs_server.ts, jobs_client.ts: a job may outlast the heartbeat", async () => {
  const names = ["jobs_server.ts", "jobs_client.ts"];
  await using folder = await Folder.of(ENGLISH, ...names);
  await using server = folder.start("jobs_server.ts");
  await server.next(`Listening on port ${folder.port}`);
  await using client = folder.start("jobs_client.ts", "12", "1");
  folder.assertShown("jobs_client.ts", await client.rest());
  await client.ended();
  server.kill("SIGTERM");
  await server.ended();
});

for (const stopped of ["server", "client"]) {
  Deno.test(`jobs_server.ts, jobs_client.ts: a ${stopped} that stands still is given up`, async () => {
    const names = ["jobs_server.ts", "jobs_client.ts"];
    await using folder = await Folder.of(ENGLISH, ...names);
    await using server = folder.start("jobs_server.ts");
    await server.next(`Listening on port ${folder.port}`);
    await using client = folder.start("jobs_client.ts", "0", "60");
    await client.next("done: 0 seconds");
    (stopped === "server" ? server : client).kill("SIGSTOP");
    if (stopped === "server") {
      assert.equal((await client.status()).code, 1);
      assert.match(
        client.errors,
        /^error: Uncaught .* TimeoutError: time is up/,
      );
    } else {
      await server.saysOnStderr(/127\.0\.0\.1:\d+ TimeoutError: time is up\n/);
      server.kill("SIGTERM"); // The job was stopped, or this would take a minute.
      await server.ended(0, /127\.0\.0\.1:\d+ TimeoutError: time is up\n/);
    }
  });
}

Deno.test("tls_server.ts, tls_client.ts: a line goes there and back", async () => {
  await using folder = await Folder.of(
    ENGLISH,
    "tls_server.ts",
    "tls_client.ts",
  );
  await folder.certify();
  const allowed = ["--allow-read"];
  await using server = folder.startAllowing(allowed, "tls_server.ts");
  await server.next(`Listening on port ${folder.port}`);
  await using client = folder.startAllowing(allowed, "tls_client.ts");
  folder.assertShown("tls_client.ts", await client.rest());
  await client.ended();
});

Deno.test("forwarder.ts: the exchange passes it, with both half-closes", async () => {
  await using folder = await Folder.of(ENGLISH, "forwarder.ts");
  await using server = script("server.ts", "--port", "0", "--once");
  const port = await listening(server);
  await using _ = folder.start("forwarder.ts", port);
  await using client = folder.start("client.ts", "--wait", "60");
  await client.next(`Connected to 127.0.0.1:${folder.port}`);
  await client.next(`Greeting: ${GREETING}`);
  await client.next(`Replied: ${REPLY}`);
  await client.ended(); // with no note that the greeting has not ended
  await server.next(/127\.0\.0\.1:\d+ connected/);
  await server.next(new RegExp(`127\\.0\\.0\\.1:\\d+ replied: ${REPLY}`));
  await server.next("Served 1 client");
  await server.ended();
});

Deno.test("forwarder.ts: an answer that comes after the client's end passes it", async () => {
  await using folder = await Folder.of(ENGLISH, "forwarder.ts");
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  await using _ = folder.start("forwarder.ts", `${listener.addr.port}`);
  using client = await folder.dial();
  await client.end("ask");
  using server = new Client(await inTime("a client", listener.accept()));
  assert.equal(await server.rest(), "ask");
  await server.end("answer");
  assert.equal(await client.rest(), "answer");
});

// The programs of the lesson

Deno.test("next_server.ts without its half-close: client.ts waits for two seconds, and says so", async () => {
  await using folder = await Folder.of(LESSON, "next_server.ts");
  await folder.change("next_server.ts", "await connection.closeWrite();", "");
  await using server = folder.start("next_server.ts");
  await using client = folder.startJoined("client.ts", "--wait", "60");
  folder.assertShown("client.ts", await client.rest());
  await client.ended();
  await server.next(REPLY);
});

Deno.test("practice.ts: it prints what the lesson shows, without a permission", async () => {
  await using folder = await Folder.of(LESSON, "practice.ts");
  const args = ["run", "--no-prompt", "practice.ts"];
  await using practice = start(Deno.execPath(), args, { cwd: folder.path });
  folder.assertShown("practice.ts", await practice.rest());
  await practice.ended();
});

Deno.test("two_writes.ts: a client that was busy reads both at once", async () => {
  const names = ["two_writes.ts", "small_client.ts"];
  await using folder = await Folder.of(LESSON, ...names);
  const pause = await blockWith(LESSON, "就是半秒");
  const read = "const length = ";
  await folder.change("small_client.ts", read, `${pause}\n${read}`);
  await using server = folder.start("two_writes.ts");
  await sleep(500); // It prints nothing.
  await using client = folder.start("small_client.ts");
  folder.assertShown("small_client.ts", await client.rest());
  await server.ended();
});

Deno.test("small_client.ts: a second reply fails, as small_server.ts has closed", async () => {
  const names = ["small_server.ts", "small_client.ts"];
  await using folder = await Folder.of(LESSON, ...names);
  const more = await blockWith(LESSON, '再見"));');
  const close = "connection.close();";
  await folder.change("small_client.ts", close, `${more}\n${close}`);
  await using server = folder.start("small_server.ts");
  await server.next("等待連線");
  await using client = folder.startJoined("small_client.ts");
  folder.assertShown("small_client.ts", await client.rest());
});

Deno.test("echo_server.ts, my_client.ts: each line comes back; without a line end, none", async () => {
  const names = ["echo_server.ts", "my_client.ts"];
  await using folder = await Folder.of(LESSON, ...names);
  await using server = folder.start("echo_server.ts");
  await server.next("正在監聽");
  using client = await folder.dial();
  await client.write("你好\r\nhello\n");
  assert.equal(await client.line(), "你好");
  assert.equal(await client.line(), "hello");
  await using own = folder.start("my_client.ts");
  folder.assertShown("my_client.ts", await own.rest());
  await own.ended();
  const limited = "Peer(connection, { timeout: 500 })";
  await folder.change("my_client.ts", "Peer(connection)", limited);
  await folder.change("my_client.ts", "${word}\\n", "${word}");
  await using endless = folder.start("my_client.ts");
  assert.equal((await endless.status()).code, 1);
  folder.assertShown("my_client.ts", endless.errors);
});

Deno.test("bye_server.ts: it answers in capitals, and ends at bye", async () => {
  await using folder = await Folder.of(LESSON, "bye_server.ts");
  await using _ = folder.start("bye_server.ts");
  using client = await folder.dial();
  await client.write("hello\nbye\nmore\n");
  assert.equal(await client.rest(), "HELLO\n");
});

Deno.test("who_server.ts: it counts who is there, and who leaves", async () => {
  await using folder = await Folder.of(LESSON, "who_server.ts");
  await using _ = folder.start("who_server.ts");
  using one = await folder.dial();
  await one.write("\n");
  assert.equal(await one.line(), "現在有 1 個");
  using two = await folder.dial();
  await two.write("\n");
  assert.equal(await two.line(), "現在有 2 個");
  await two.end();
  assert.equal(await two.rest(), "");
  const counts = new Set<string | null>();
  for (let i = 0; i < 100 && !counts.has("現在有 1 個"); i++) {
    await one.write("\n");
    counts.add(await one.line());
    await sleep(20);
  }
  assert(counts.has("現在有 1 個"), [...counts].join());
});

Deno.test("guess_server.ts: it says too small, too large, or that it wants a number", async () => {
  await using folder = await Folder.of(LESSON, "guess_server.ts");
  await using _ = folder.start("guess_server.ts");
  using client = await folder.dial();
  assert.equal(await client.line(), "猜一個 1 到 100 的數");
  await client.write("what\n\n0\n101\n");
  for (const answer of ["請打一個數", "請打一個數", "太小", "太大"]) {
    assert.equal(await client.line(), answer);
  }
});

for (const secret of ["1", "37", "100"]) {
  Deno.test(`guess_player.ts: it finds ${secret} in seven guesses`, async () => {
    const names = ["guess_server.ts", "guess_player.ts"];
    await using folder = await Folder.of(LESSON, ...names);
    const random = "Math.floor(Math.random() * 100) + 1";
    await folder.change("guess_server.ts", random, secret);
    await using _ = folder.start("guess_server.ts");
    using client = await folder.dial(); // It listens.
    assert.equal(await client.line(), "猜一個 1 到 100 的數");
    await using player = folder.start("guess_player.ts");
    await player.next("猜一個 1 到 100 的數");
    for (let left = 7;; left--) {
      const line = await player.line();
      if (line === `${secret} 猜對了`) break;
      assert.match(line, /^\d+ 太[大小]$/);
      assert(left > 1, "it has not found it");
    }
    await player.ended();
  });
}

Deno.test("intercom.ts: both sides speak at once, and each line arrives", async () => {
  await using folder = await Folder.of(LESSON, "intercom.ts");
  const lines = Array.from({ length: 10_000 }, (_, i) => `${i}\n`).join("");
  await using called = folder.startTyping("intercom.ts");
  const typed = called.type(lines);
  await sleep(1_000); // It prints nothing.
  await using calling = folder.startTyping("intercom.ts", "call");
  await calling.type("one\n");
  assert.equal(await calling.rest(), lines);
  await calling.ended();
  await called.next("one");
  await called.ended();
  await typed;
});

Deno.test("intercom.ts: at a terminal, it ends when the other has ended", async () => {
  await using folder = await Folder.of(LESSON, "intercom.ts");
  await using called = folder.startTyping("intercom.ts");
  await sleep(1_000);
  const spawn = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
  const command = [Deno.execPath(), ...denoRun(["intercom.ts", "call"])];
  await using calling = start("python3", ["-c", spawn, ...command], {
    cwd: folder.path,
    stdin: "piped", // and silent
    detached: true,
  });
  await called.type("bye\n");
  assert.equal(await calling.rest(), "bye\r\n");
  assert.equal((await calling.status()).code, 0);
  await called.ended();
});

Deno.test("room_server.ts: what one says goes to all others, also beside one who does not read", async () => {
  await using folder = await Folder.of(LESSON, "room_server.ts");
  await using _ = folder.start("room_server.ts");
  using clients = new DisposableStack();
  const [, two, three] = (await folder.dialInTurn(3)) // The first does not read.
    .map((client) => clients.use(client)) as [Client, Client, Client];
  await three.write("three\n");
  assert.equal(await two.line(), "3 號: three");
  await two.write("two\n");
  assert.equal(await three.line(), "2 號: two");
  for (let i = 0; i < 1_000; i++) {
    await two.write(`${"x".repeat(8_000)}\n`);
    assert.equal((await three.line())?.length, 8_000 + "2 號: ".length);
  }
});

// The pages

Deno.test("the pages: what they show of server.ts is what it prints", async () => {
  for (const page of PAGES) {
    let count = 0;
    for (const { file, lines } of await sessions(page)) {
      if (file !== "server.ts" || lines.length === 0) continue;
      count++;
      const shown = lines.join("\n").replaceAll("^C", "");
      const printed = await replay(lines);
      assert(
        withoutAddresses(printed).includes(withoutAddresses(shown)),
        `${page} shows:\n${shown}\nserver.ts prints:\n${printed}`,
      );
    }
    assert(count > 0, `${page} shows no server.ts`);
  }
});

Deno.test("the pages: what they show of client.ts is what it prints", async () => {
  for (const page of PAGES) {
    let count = 0;
    for (const { file, args, lines } of await sessions(page)) {
      if (file !== "client.ts" || lines.length === 0) continue;
      if (lines.some((line) => line.startsWith("note: "))) continue; // see above
      count++;
      await using folder = await Folder.create();
      await using server = folder.start("server.ts", "--quiet");
      await listening(server);
      const host = args.indexOf("--host");
      if (host >= 0) args[host + 1] = "127.0.0.1";
      await using client = folder.start("client.ts", ...args);
      assert.equal(
        withoutAddresses(await client.rest()),
        withoutAddresses(`${lines.join("\n")}\n`),
      );
      await client.ended();
    }
    assert(count > 0, `${page} shows no client.ts`);
  }
});

Deno.test("the pages: their programs check under the strict options", async () => {
  for (const page of PAGES) {
    await using folder = await Folder.create();
    const all = await programs(page);
    for (const [name, program] of all) await folder.write(name, program);
    const args = ["check", "-q", "--config", `${ROOT}/.ci/strict.json`, ...STD];
    await using check = start(Deno.execPath(), [...args, ...all.keys()], {
      cwd: folder.path,
    });
    await check.ended();
  }
});

// With `--filter`, this one fails.
Deno.test("the pages: each program that has a name was run, above", async () => {
  for (const page of PAGES) {
    const names = [...(await programs(page)).keys()];
    assert.deepEqual([...taken.get(page) ?? []].toSorted(), names.toSorted());
  }
});

// The demo

Deno.test("deno task demo: it prints its seven lines", async () => {
  await using demo = start(Deno.execPath(), ["task", "-q", "demo"], {
    detached: true,
  });
  const lines = (await demo.rest()).trimEnd().split("\n");
  const expected = [
    "Listening on 127.0.0.1:18888",
    "Connected to 127.0.0.1:18888",
    "127.0.0.1:PORT connected",
    `Greeting: ${GREETING}`,
    `Replied: ${REPLY}`,
    `127.0.0.1:PORT replied: ${REPLY}`,
    "Served 1 client",
  ];
  const came = lines.map((line) => line.replace(/:\d+ /, ":PORT "));
  // Sorted, as two programs print them.
  assert.deepEqual(came.toSorted(), expected.toSorted());
  await demo.ended(0, /(JSR cannot be reached: .*\n)?/);
});

// Helpers: programs

interface StartOptions {
  cwd?: string;
  env?: Record<string, string>;
  stdin?: "piped" | "null";
  detached?: boolean; // where it starts others, which are to be killed with it
}

function start(
  command: string,
  args: string[],
  options: StartOptions = {},
): Process {
  return new Process(command, args, options);
}

/** One of the scripts. */
function script(...args: string[]): Process {
  return start(Deno.execPath(), denoRun(args));
}

function denoRun(args: string[]): string[] {
  return ["run", "--no-prompt", "--allow-net", ...STD, ...args];
}

/** The same, by way of a shell that sends its output elsewhere. */
function redirected(where: string, args: string[], cwd = ROOT): Process {
  const shell = ["-c", `exec "$@" ${where}`, "bash", Deno.execPath()];
  return start("bash", [...shell, ...denoRun(args)], { cwd });
}

function python(code: string): Process {
  return start("python3", ["-c", code]);
}

/** The port of a server whose first line this is. */
async function listening(server: Process): Promise<string> {
  const [, port] = await server.next(/Listening on 127\.0\.0\.1:(\d+)/);
  return port!;
}

/** A program that was started. It is killed at the end of the block. */
class Process implements AsyncDisposable {
  #errors = ""; // what came on stderr
  #isSeen = false; // by the test
  readonly #name: string;
  readonly #isDetached: boolean;
  readonly #hasStdin: boolean;
  readonly #child: Deno.ChildProcess;
  readonly #output: ReadableStreamDefaultReader<Uint8Array>;
  readonly #lines = new Input(async () =>
    (await this.#output.read()).value ?? null
  );
  readonly #errorsEnded: Promise<void>;

  constructor(command: string, args: string[], options: StartOptions) {
    const { cwd = ROOT, env, stdin = "null", detached = false } = options;
    this.#name = args.findLast((arg) => arg.endsWith(".ts")) ?? command;
    this.#isDetached = detached;
    this.#hasStdin = stdin === "piped";
    this.#child = new Deno.Command(command, {
      args,
      cwd,
      env: { NO_COLOR: "1", ...env },
      stdin,
      stdout: "piped",
      stderr: "piped",
      detached,
    }).spawn();
    this.#output = this.#child.stdout.getReader();
    this.#errorsEnded = this.#collectErrors();
  }

  async #collectErrors(): Promise<void> {
    const texts = this.#child.stderr.pipeThrough(new TextDecoderStream());
    for await (const text of texts) this.#errors += text;
  }

  /** What came on stderr. */
  get errors(): string {
    this.#isSeen = true;
    return this.#errors;
  }

  /** The next line of its output. */
  async line(): Promise<string> {
    const line = await this.#inTime("a line", this.#lines.line());
    return line ?? this.#fail("a line, and it ended");
  }

  /** The next line is this, or matches as a whole. Gives the match. */
  async next(expected: string | RegExp): Promise<string[]> {
    const line = await this.#inTime(`${expected}`, this.#lines.line());
    return isWhole(line, expected) ??
      this.#fail(`the line ${expected}, got ${JSON.stringify(line)}`);
  }

  /** What is left of its output, to the end. */
  rest(): Promise<string> {
    return this.#inTime("the end of its output", this.#lines.rest());
  }

  closeOutput(): Promise<void> {
    return this.#output.cancel().catch(() => {});
  }

  /** It ends, with this code and these errors, and has printed no more. */
  async ended(code = 0, errors: string | RegExp = ""): Promise<void> {
    assert.equal(await this.rest(), "", `${this.#name} printed more`);
    const status = await this.status();
    if (status.code !== code) {
      this.#fail(`the exit code ${code}, got ${status.code}`);
    }
    if (!isWhole(this.errors, errors)) this.#fail(`${errors} on stderr`);
  }

  /** It ends, whether its output was read or not. */
  async status(): Promise<Deno.CommandStatus> {
    const status = await this.#inTime("its end", this.#child.status);
    await this.#errorsEnded;
    return status;
  }

  async saysOnStderr(errors: RegExp): Promise<void> {
    const deadline = performance.now() + 60_000;
    while (!isWhole(this.errors, errors)) {
      if (performance.now() > deadline) this.#fail(`${errors} on stderr`);
      await sleep(50);
    }
  }

  kill(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  /** Its memory at its peak, in MB. */
  async peak(): Promise<number> {
    const status = await Deno.readTextFile(`/proc/${this.#child.pid}/status`);
    return Number(status.match(/VmHWM:\s+(\d+)/)![1]) / 1024;
  }

  /** Writes to its stdin, and closes that. */
  async type(text: string): Promise<void> {
    const writer = this.#child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(text));
    await writer.close();
  }

  #inTime<T>(what: string, promise: Promise<T>): Promise<T> {
    return inTime(what, promise).catch((error) => this.#fail(error.message));
  }

  #fail(expected: string): never {
    const errors = this.errors || "nothing\n";
    assert.fail(`${this.#name}: expected ${expected}; on stderr: ${errors}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#hasStdin) await this.#child.stdin.close().catch(() => {});
    try {
      const { pid } = this.#child;
      Deno.kill(this.#isDetached ? -pid : pid, "SIGKILL");
    } catch { /* It has ended. */ }
    await this.closeOutput();
    await this.#child.status;
    await this.#errorsEnded;
    // Among the output of this test, perhaps beside the failure of a peer's.
    if (this.#errors && !this.#isSeen) {
      console.error(`${this.#name} on stderr:\n${this.#errors}`);
    }
  }
}

/** Gives the match, if the text is that, or matches as a whole. */
function isWhole(
  text: string | null,
  expected: string | RegExp,
): string[] | undefined {
  if (text === null) return undefined;
  if (text === expected) return [text];
  const match = expected instanceof RegExp && text.match(expected);
  return match && match[0] === text ? match : undefined;
}

// Helpers: peers

/** What comes, by lines or to its end. */
class Input {
  readonly #source: () => Promise<Uint8Array | null>;
  readonly #decoder = new TextDecoder();
  #text = "";
  #hasEnded = false;

  constructor(source: () => Promise<Uint8Array | null>) {
    this.#source = source;
  }

  /** The next line, or `null` at the end. */
  async line(): Promise<string | null> {
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line;
      }
      if (!await this.#read()) return await this.rest() || null;
    }
  }

  async rest(): Promise<string> {
    while (await this.#read());
    const rest = this.#text;
    this.#text = "";
    return rest;
  }

  async #read(): Promise<boolean> {
    if (this.#hasEnded) return false;
    const bytes = await this.#source();
    this.#hasEnded = bytes === null;
    this.#text += this.#decoder.decode(bytes ?? undefined, { stream: !!bytes });
    return !this.#hasEnded;
  }
}

/** A raw TCP peer. */
class Client implements Disposable {
  readonly #connection: Deno.TcpConn;
  readonly #buffer = new Uint8Array(65_536);
  readonly #input = new Input(async () => {
    const count = await this.#connection.read(this.#buffer);
    return count === null ? null : this.#buffer.subarray(0, count);
  });

  constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  /** Resolves as soon as nobody listens any more. */
  static async isRefused(port: string): Promise<void> {
    const deadline = performance.now() + 5_000;
    while (performance.now() < deadline) {
      try {
        const address = { hostname: "127.0.0.1", port: Number(port) };
        using _ = await Deno.connect(address);
      } catch (error) {
        if (error instanceof Deno.errors.ConnectionRefused) return;
      }
      await sleep(50);
    }
    assert.fail("somebody still listens");
  }

  /** Connects, as soon as somebody listens. */
  static async dial(port: string | number): Promise<Client> {
    const deadline = performance.now() + 30_000;
    for (;;) {
      try {
        const address = { hostname: "127.0.0.1", port: Number(port) };
        return new Client(await Deno.connect(address));
      } catch (error) {
        const isEarly = error instanceof Deno.errors.ConnectionRefused;
        if (!isEarly || performance.now() > deadline) throw error;
      }
      await sleep(50);
    }
  }

  async write(text: string): Promise<void> {
    let rest = new TextEncoder().encode(text);
    while (rest.length > 0) {
      const writing = this.#connection.write(rest);
      rest = rest.subarray(await inTime("a write", writing));
    }
  }

  /** Writes this, and ends its half. */
  async end(text = ""): Promise<void> {
    await this.write(text);
    await this.#connection.closeWrite();
  }

  line(): Promise<string | null> {
    return inTime("a line", this.#input.line());
  }

  rest(): Promise<string> {
    return inTime("the peer's end", this.#input.rest());
  }

  [Symbol.dispose](): void {
    this.#connection[Symbol.dispose]();
  }
}

/** A client that reads its greeting, and resets. */
async function resetClient(port: string): Promise<void> {
  const client = connect(Number(port), "127.0.0.1");
  client.once("data", () => client.resetAndDestroy());
  await inTime("its reset", once(client, "close"));
}

async function sendBack(client: Peer<Deno.Conn>): Promise<void> {
  for await (const line of client) await client.send(`${line}\n`);
}

// Helpers: pages

const taken = new Map<string, Set<string>>(); // names of programs, by their page

interface Session {
  file: string; // of the program
  args: string[];
  lines: string[]; // that it is shown to print
}

const NAME = /`(\w+\.ts)`[:：]$/; // at the end of a line

/** The blocks of a page, and the line with a name that stands above each. */
async function blocks(page: string) {
  const text = await Deno.readTextFile(`${ROOT}/${page}`);
  const found: { kind: string; lines: string[]; before: string }[] = [];
  let before = "";
  let open: { kind: string; lines: string[]; indent: string } | undefined;
  for (const line of text.split("\n")) {
    const [, indent = "", kind = ""] = line.match(/^( *)```(.*)$/) ?? [];
    const isFence = /^ *```/.test(line);
    if (open && isFence) {
      found.push({ kind: open.kind, lines: open.lines, before });
      open = undefined;
      before = "";
    } else if (open) open.lines.push(line.replace(open.indent, ""));
    else if (isFence) open = { kind, lines: [], indent };
    else if (line.startsWith("#")) before = "";
    else if (NAME.test(line)) before = line;
  }
  return found;
}

/** The programs of a page: each stands below a line that ends with its name. */
async function programs(page: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const { kind, lines, before } of await blocks(page)) {
    if (kind !== "ts") continue;
    const [, name] = before.match(NAME) ?? [];
    assert(name, `${page} has a program without a name:\n${lines.join("\n")}`);
    assert(!found.has(name), `${page} has two programs with the name ${name}`);
    found.set(name, `${lines.join("\n")}\n`);
  }
  return found;
}

/** The block that has this text. */
async function blockWith(page: string, text: string): Promise<string> {
  const found = (await blocks(page)).map(({ lines }) => lines.join("\n"));
  const block = found.find((block) => block.includes(text));
  assert(block, `${page} has no block with ${text}`);
  return block;
}

/** What the consoles of a page show of each `deno run`. */
async function sessions(page: string): Promise<Session[]> {
  const found: Session[] = [];
  for (const { kind, lines } of await blocks(page)) {
    if (kind !== "console") continue;
    // Without a prompt, it goes on with what a server prints.
    const isOfServer = lines.every((line) => LINE_OF_SERVER.test(line));
    let session: Session = {
      file: isOfServer ? "server.ts" : "",
      args: [],
      lines: [],
    };
    found.push(session);
    for (const line of lines) {
      const [, command] = line.match(/^\w*\$ (.*)$/) ?? [];
      if (command === undefined) session.lines.push(line);
      else {
        const [, file = "", rest = ""] =
          command.match(/^deno run .*?(\w+\.ts) ?(.*)$/) ?? [];
        session = { file, args: rest.split(" ").filter(Boolean), lines: [] };
        found.push(session);
      }
    }
  }
  return found;
}

const LINE_OF_SERVER = /^(127\.0\.0\.1:\d+ |\^C|Served )/;

/** Has the clients of these lines of server.ts, and gives all that it prints. */
async function replay(lines: string[]): Promise<string> {
  await using folder = await Folder.create();
  await using server = folder.start("server.ts");
  const printed = [await server.line()];
  const outcomes = lines.filter((line) =>
    / (replied|left|timed|reset)\b/.test(line)
  );
  const served = Number(lines.at(-1)?.match(/^Served (\d+)/)?.[1] ?? 0);
  while (outcomes.length < served) outcomes.unshift("left without a reply");
  for (const outcome of outcomes) {
    if (outcome.endsWith("reset the connection")) {
      await resetClient(folder.port);
    } else {
      using client = await folder.dial();
      await client.rest();
      const [, reply] = outcome.match(/ replied: (.*)$/) ?? [];
      if (!outcome.endsWith("timed out")) await client.end(reply);
      printed.push(await server.line());
    }
    printed.push(await server.line());
  }
  server.kill("SIGINT");
  return [...printed, await server.rest()].join("\n");
}

const withoutAddresses = (text: string) =>
  text.replace(/\d+(\.\d+){3}:\d+/g, "ADDRESS");

// Helpers: folders, and the rest

/** A temporary folder with both scripts, whose default is a free port. */
class Folder implements AsyncDisposable {
  readonly path: string;
  readonly port: string;
  #sessions: Session[] = []; // of the page that its programs are from

  private constructor(path: string) {
    this.path = path;
    this.port = freePort();
  }

  static async create(): Promise<Folder> {
    const folder = new Folder(await Deno.makeTempDir({ prefix: "gate-" }));
    for (const name of ["server.ts", "client.ts"]) {
      await folder.write(name, await Deno.readTextFile(`${ROOT}/${name}`));
    }
    return folder;
  }

  /** Writes a program, for the port of this folder. */
  async write(name: string, text: string): Promise<void> {
    const program = text.replaceAll("8888", this.port);
    await Deno.writeTextFile(`${this.path}/${name}`, program);
  }

  /** With programs of a page. */
  static async of(page: string, ...names: string[]): Promise<Folder> {
    const folder = await Folder.create();
    for (const name of names) {
      const program = (await programs(page)).get(name);
      assert(program, `${page} has no ${name}`);
      await folder.write(name, program);
      taken.set(page, (taken.get(page) ?? new Set()).add(name));
    }
    folder.#sessions = await sessions(page);
    return folder;
  }

  /** A console of the page shows this; of an error, perhaps its first lines. */
  assertShown(name: string, printed: string): void {
    const shown = this.#sessions
      .filter(({ file, lines }) => lines.length && ["", name].includes(file))
      .map(({ lines }) => `${lines.join("\n")}\n`.replace("8888", this.port));
    const isShown = shown.some((text) =>
      text === printed || text.includes("error: ") && printed.startsWith(text)
    );
    const what = `${name} printed:\n${printed}\nThe page shows:\n`;
    assert(isShown, what + shown.join("\n"));
  }

  /** As a reader changes a program of the page. */
  async change(name: string, part: string, other: string): Promise<void> {
    const program = await Deno.readTextFile(`${this.path}/${name}`);
    assert(program.includes(part), `${name} has no ${part}`);
    await this.write(name, program.replace(part, () => other));
  }

  /** Clients whom a server counts in this order. */
  async dialInTurn(count: number): Promise<Client[]> {
    const clients: Client[] = [];
    while (clients.push(await this.dial()) < count) await sleep(100);
    await sleep(100);
    return clients;
  }

  dial(): Promise<Client> {
    return Client.dial(this.port);
  }

  start(...args: string[]): Process {
    return start(Deno.execPath(), denoRun(args), { cwd: this.path });
  }

  /** With its stderr among its lines. */
  startJoined(...args: string[]): Process {
    return redirected("2>&1", args, this.path);
  }

  /** With a stdin for {@linkcode Process.type}. */
  startTyping(...args: string[]): Process {
    const options = { cwd: this.path, stdin: "piped" } as const;
    return start(Deno.execPath(), denoRun(args), options);
  }

  startAllowing(permissions: string[], ...args: string[]): Process {
    const all = ["run", "--no-prompt", "--allow-net", ...permissions, ...STD];
    return start(Deno.execPath(), [...all, ...args], { cwd: this.path });
  }

  /** Nothing is cached, and JSR refuses the connection. */
  startWithoutRegistry(...args: string[]): Process {
    const JSR_URL = "http://127.0.0.1:1/";
    return start(Deno.execPath(), ["run", "-q", "--allow-net", ...args], {
      cwd: this.path,
      env: { JSR_URL, DENO_DIR: `${this.path}/cache` },
    });
  }

  /** Makes the key and the certificate as the README shows. */
  async certify(): Promise<void> {
    const command = await blockWith(ENGLISH, "openssl req");
    await using openssl = start("bash", ["-c", `${command} 2>&1`], {
      cwd: this.path,
    });
    await openssl.rest();
    await openssl.ended();
  }

  async listenTls() {
    await this.certify();
    const cert = await Deno.readTextFile(`${this.path}/cert.pem`);
    const key = await Deno.readTextFile(`${this.path}/key.pem`);
    const address = { hostname: "127.0.0.1", port: 0, cert, key };
    const listener = Deno.listenTls(address);
    const { port } = listener.addr;
    const connect = () =>
      Deno.connectTls({ hostname: "localhost", port, caCerts: [cert] });
    return { listener, port, connect };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Deno.remove(this.path, { recursive: true });
    await sleep(150); // The last look of `server.ts`, where a test had it here.
  }
}

/** Not one that the system gives to connections: somebody else might get it. */
function freePort(): string {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    try {
      Deno.listen({ hostname: "127.0.0.1", port }).close();
      return `${port}`;
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    }
  }
}

async function inTime<T>(
  what: string,
  promise: Promise<T>,
  milliseconds = 60_000,
): Promise<T> {
  const late = Promise.withResolvers<never>();
  const error = new Error(`${what} did not come in time`);
  const timer = setTimeout(() => late.reject(error), milliseconds);
  return await Promise.race([promise, late.promise])
    .finally(() => clearTimeout(timer));
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** What makes Deno take the stand-in for @std, where JSR cannot be reached. */
async function flagsForStd(): Promise<string[]> {
  const args = ["task", "-q", "std"];
  const command = new Deno.Command(Deno.execPath(), { args, cwd: ROOT });
  const flags = new TextDecoder().decode((await command.output()).stdout);
  return flags.replace("=.ci", `=${ROOT}/.ci`).split(/\s+/).filter(Boolean);
}
