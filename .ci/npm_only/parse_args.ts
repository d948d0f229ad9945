// Stands in for jsr:@std/cli/parse-args where only npm can be reached: what the
// two scripts use of it, on minimist, from which the original descends.

import minimist from "minimist";

interface Options {
  string: string[];
  alias: Record<string, string>;
  default: Record<string, unknown>;
  unknown: (arg: string) => boolean;
}

type Flags = Record<string, unknown> & { _: unknown[] };

/** As the original does, but for these options alone. */
export function parseArgs(args: string[], options: Options): Flags {
  const end = args.includes("--") ? args.indexOf("--") : args.length;
  const flags = minimist(
    args.map((given, i) => {
      if (i >= end) return given;
      // The original takes --no-x=y for --x=y.
      const arg = given.replace(/^--no-(?=[^=]+=)/, "--");
      // minimist turns --no-x into x=false by itself, and stumbles over what
      // every object has, such as --toString. Here both are unknown.
      const [, name = ""] = arg.match(/^--([^=.]+)/) ?? [];
      if (name.startsWith("no-") || name in {}) {
        return arg.replace("--", "--\0");
      }
      // minimist takes "", "-" and "---x" for a value. Here they are none.
      const valued = options.string.some((name) =>
        arg === `--${name}` || arg === `--${options.alias[name]}`
      );
      return valued && /^(-|$)/.test(args[i + 1] ?? "-") ? `${arg}=` : arg;
    }),
    {
      ...options,
      unknown: (arg: string) => options.unknown(arg.replace("\0", "")),
    },
  );
  // minimist keeps every value of a repeated flag. Here the last one counts.
  for (const name of options.string) {
    if (Array.isArray(flags[name])) flags[name] = flags[name].at(-1);
  }
  return flags;
}
