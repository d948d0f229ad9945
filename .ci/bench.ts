// `deno task bench`: server.ts beside a bare loop and Node. Only the ratios count.

import { Peer, serve } from "../server.ts";

const GREETING = new TextEncoder().encode("你好,客戶端,我是服務器");
const REPLY = new TextEncoder().encode("你好服務器");
const LINES = new TextEncoder().encode("SET key00 value0001\n".repeat(50_000));
const ROUNDS = 3, SECONDS = 1.5; // for each, of exchanges
const MEGABYTES = 40; // of lines

const script = new URL("../server.ts", import.meta.url).pathname;
const deno = (...args: string[]) =>
  [Deno.execPath(), "run", "-q", "-A"].concat(args);
const node = (code: string) => ["node", "-e", code];
const hasNode = await new Deno.Command("node", { args: ["-v"] }).output()
  .then(() => true, () => false);
const EXCHANGES = {
  "server.ts": deno(...Deno.args, script, "-q", "--max-clients=8000", "--port"),
  "bare loop": deno(import.meta.filename!, "bare"),
  "Node": node(`require("net").createServer({ allowHalfOpen: true }, (c) => {
    c.on("error", () => {}).on("data", () => {}).on("end", () => c.destroy());
    c.end("你好,客戶端,我是服務器");
  }).listen({ port: +process.argv[1], host: "127.0.0.1", backlog: 4096 })`),
};
const COUNTING = {
  "for await": deno(import.meta.filename!, "lines"),
  "readline": node(
    `require("net").createServer({ allowHalfOpen: true }, (c) => {
    const lines = require("readline").createInterface({ input: c });
    let count = 0;
    lines.on("line", () => count++).on("close", () => c.end(String(count)));
  }).listen(+process.argv[1], "127.0.0.1")`,
  ),
};

/** The exchange with nothing around it: no time, no limit, no lines. */
async function bare(port: number): Promise<void> {
  const address = { hostname: "127.0.0.1", port, tcpBacklog: 4096 };
  const exchange = async (connection: Deno.Conn) => {
    using _ = connection;
    await connection.write(GREETING);
    await connection.closeWrite();
    const buffer = new Uint8Array(128);
    while (await connection.read(buffer) !== null);
  };
  for await (const connection of Deno.listen(address)) {
    exchange(connection).catch(() => {}); // a client that reset
  }
}

async function countLines(client: Peer): Promise<void> {
  let count = 0;
  for await (const _ of client) count++;
  await client.send(`${count}`);
}

/** Starts a program, and waits until it listens. */
async function started([command, ...args]: string[]) {
  const free = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = free.addr;
  free.close();
  const quiet = { stdout: "null", stderr: "null" } as const;
  const options = { args: [...args, `${port}`], ...quiet };
  const program = new Deno.Command(command!, options).spawn();
  for (let tries = 0; tries < 400; tries++) {
    const connection = await Deno.connect({ port }).catch(() => {});
    connection?.close();
    if (connection) return { program, port };
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`it does not listen: ${options.args}`);
}

/** CPU time of a process in ms, where the system tells it (Linux does). */
async function cpuTime(pid: number): Promise<number> {
  const stat = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => "");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10; // a hundred ticks a second
}

/** So many clients at once, each one exchange after the other. */
async function measureExchanges(command: string[], clients: number) {
  const { program, port } = await started(command);
  await using _ = program; // ended with the block
  const times: number[] = [];
  const cpu = await cpuTime(program.pid);
  const end = performance.now() + 1000 * SECONDS;
  const buffer = new Uint8Array(128);
  const client = async () => {
    for (let began; (began = performance.now()) < end;) {
      using connection = await Deno.connect({ port });
      while (await connection.read(buffer) !== null);
      await connection.write(REPLY);
      times.push(performance.now() - began);
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  const { length } = times.sort((a, b) => a - b);
  const [median, last] = [0.5, 0.99].map((part) => times[~~(part * length)]!);
  const cpuEach = 1000 * (await cpuTime(program.pid) - cpu) / length;
  return [length / SECONDS, median!, last!, cpuEach];
}

async function measureLines(command: string[]): Promise<number[]> {
  const { program, port } = await started(command);
  await using _ = program;
  await using peer = new Peer(await Deno.connect({ port }));
  const began = performance.now();
  for (let i = 0; i < MEGABYTES; i++) await peer.send(LINES);
  await peer.closeWrite();
  return [Number(await peer.readAll()) / (performance.now() - began) * 1000];
}

const median = (all: number[]) => all.sort((a, b) => a - b)[all.length >> 1]!;

/** Each program in turn; medians, and the ratio of the first to each. */
async function compare(
  title: string,
  programs: Record<string, string[]>,
  measure: (command: string[]) => Promise<number[]>,
): Promise<void> {
  const runs: Record<string, number[][]> = {};
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, command] of Object.entries(programs)) {
      if (command[0] === "node" && !hasNode) continue;
      (runs[name] ??= []).push(await measure(command));
    }
  }
  console.log(title);
  const ours: number[] = [];
  for (const [name, all] of Object.entries(runs)) {
    const figures = all[0]!.map((_, i) => median(all.map((one) => one[i]!)));
    if (ours.length === 0) ours.push(...figures);
    const ratios = figures.map((one, i) => (ours[i]! / one).toFixed(2));
    const shown = figures.map((one) => one.toFixed(one < 1000 ? 1 : 0));
    console.log(`  ${name.padEnd(10)}`, ...shown, `(${ratios.join(" ")})`);
  }
}

const [what, port] = Deno.args;
if (what === "bare") await bare(Number(port));
else if (what === "lines") serve({ port: Number(port), handler: countLines });
else {
  const figures = "exchanges/s, p50 ms, p99 ms, CPU µs (ours to it)";
  for (const clients of [64, 1_000]) {
    const measure = (one: string[]) => measureExchanges(one, clients);
    await compare(`${clients} clients: ${figures}`, EXCHANGES, measure);
  }
  await compare("lines/s (ours to it)", COUNTING, measureLines);
}
