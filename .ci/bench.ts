// How fast server.ts is, beside a bare loop in Deno and, where it is there, Node.
// Only the ratios count: on another machine, all figures move together.
//
//     deno task bench
//
// The programs run in turn, round after round; what is shown are medians.

import { serve } from "../server.ts";

const GREETING = new TextEncoder().encode("你好,客戶端,我是服務器");
const REPLY = new TextEncoder().encode("你好服務器");
const LINES = new TextEncoder().encode("SET key00 value0001\n".repeat(50_000));
const ROUNDS = 3;
const SECONDS = 1.5; // for each round of exchanges
const MEGABYTES = 40; // of lines

/** The programs under test. Each is given a port. */
const self = import.meta.filename!;
const deno = (...args: string[]) => [Deno.execPath(), "run", "-q", ...args];
const net = ["--no-prompt", "--allow-net=127.0.0.1"];
const script = new URL("../server.ts", import.meta.url).pathname;
const quiet = ["--quiet", "--max-clients=8000", "--port"];
const EXCHANGES = {
  "server.ts": deno(...net, ...Deno.args, script, ...quiet),
  "bare loop": deno(...net, self, "bare"),
  "Node": [
    "node",
    "-e",
    `require("net").createServer({ allowHalfOpen: true }, (c) => {
      c.on("error", () => {}).on("data", () => {}).on("end", () => c.destroy());
      c.end("你好,客戶端,我是服務器");
    }).listen({ port: +process.argv[1], host: "127.0.0.1", backlog: 4096 })`,
  ],
};
const COUNTING = {
  "for await": deno(...net, self, "lines"),
  "Node readline": [
    "node",
    "-e",
    `require("net").createServer({ allowHalfOpen: true }, (c) => {
      let count = 0;
      const lines = require("readline").createInterface({ input: c });
      lines.on("line", () => count++).on("close", () => c.end(String(count)));
    }).listen(+process.argv[1], "127.0.0.1")`,
  ],
};

/** The exchange with nothing around it: no time, no limit, no lines. */
async function bare(port: number): Promise<void> {
  const address = { hostname: "127.0.0.1", port, tcpBacklog: 4096 };
  for await (const connection of Deno.listen(address)) {
    exchange(connection).catch(() => {}) // a client that reset
      .finally(() => connection.close());
  }
}

async function exchange(connection: Deno.Conn): Promise<void> {
  await connection.write(GREETING);
  await connection.closeWrite();
  const buffer = new Uint8Array(128);
  while (await connection.read(buffer) !== null);
}

function lines(port: number): void {
  serve({
    port,
    handler: async (client) => {
      let count = 0;
      for await (const _ of client) count++;
      await client.send(`${count}`);
    },
  });
}

/** Starts a program, and waits until it listens. */
async function started([command, ...args]: string[]) {
  using free = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = free.addr;
  free.close();
  const all = [...args, `${port}`];
  const output = { stdout: "null", stderr: "null" } as const;
  const program = new Deno.Command(command!, { args: all, ...output }).spawn();
  for (let tries = 0; tries < 400; tries++) {
    const connection = await Deno.connect({ port }).catch(() => {});
    connection?.close();
    if (connection) return { program, port };
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  program.kill("SIGKILL");
  throw new Error(`it does not listen: ${command} ${all.join(" ")}`);
}

/** CPU time of a process in ms, where the system tells it (Linux does). */
async function cpuTime(pid: number): Promise<number> {
  const stat = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => "");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10; // a hundred ticks a second
}

/** So many clients at once, one after the other. */
async function measureExchanges(command: string[], clients: number) {
  const { program, port } = await started(command);
  const times: number[] = [];
  const before = await cpuTime(program.pid);
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
  const cpu = 1000 * (await cpuTime(program.pid) - before) / times.length;
  program.kill("SIGKILL");
  await program.status;
  times.sort((a, b) => a - b);
  const percentile = (part: number) => times[Math.floor(part * times.length)]!;
  return [times.length / SECONDS, percentile(0.5), percentile(0.99), cpu];
}

async function measureLines(command: string[]): Promise<number[]> {
  const { program, port } = await started(command);
  using connection = await Deno.connect({ port });
  const began = performance.now();
  for (let i = 0; i < MEGABYTES; i++) {
    for (let rest = LINES; rest.length > 0;) {
      rest = rest.subarray(await connection.write(rest));
    }
  }
  await connection.closeWrite();
  const answer = new Uint8Array(32);
  const length = await connection.read(answer) ?? 0;
  const count = Number(new TextDecoder().decode(answer.subarray(0, length)));
  program.kill("SIGKILL");
  await program.status;
  return [count / (performance.now() - began) * 1000];
}

/** Each program in turn; medians, and the ratio of the first to each. */
async function compare(
  title: string,
  programs: Record<string, string[]>,
  measure: (command: string[]) => Promise<number[]>,
): Promise<void> {
  const runs = new Map<string, number[][]>();
  for (let round = 0; round < ROUNDS; round++) {
    for (const [name, command] of Object.entries(programs)) {
      const figures = await measure(command).catch((error) => {
        if (!(error instanceof Deno.errors.NotFound)) throw error; // no Node here
      });
      if (figures) runs.set(name, [...(runs.get(name) ?? []), figures]);
    }
  }
  console.log(title);
  const median = (all: number[]) => all.sort((a, b) => a - b)[all.length >> 1]!;
  let ours: number[] | undefined;
  for (const [name, all] of runs) {
    const figures = all[0]!.map((_, i) => median(all.map((one) => one[i]!)));
    ours ??= figures;
    const ratios = figures.map((one, i) => (ours![i]! / one).toFixed(2));
    const shown = figures.map((one) => one.toFixed(one < 1000 ? 2 : 0));
    console.log(
      `  ${name.padEnd(14)} ${shown.join("  ")}  (${ratios.join(" ")})`,
    );
  }
}

const [what, port] = Deno.args;
if (what === "bare") await bare(Number(port));
else if (what === "lines") lines(Number(port));
else {
  for (const clients of [64, 1_000]) {
    await compare(
      `${clients} clients: exchanges/s, median ms, 99th percentile ms, CPU µs (ours to it)`,
      EXCHANGES,
      (command) => measureExchanges(command, clients),
    );
  }
  await compare("lines/s (ours to it)", COUNTING, measureLines);
}
