// Stands in for jsr:@std/assert where only npm can be reached: what the test
// uses of it, on node:assert.

import strict from "node:assert/strict";

// deno-lint-ignore no-explicit-any
type ErrorClass = abstract new (...args: any[]) => Error;

/** As the original. */
export function assert(value: unknown, message?: string): asserts value {
  strict.ok(value, message ?? "");
}

/** As the original, for plain data. */
export function assertEquals<T>(actual: T, expected: T): void {
  strict.deepStrictEqual(actual, expected);
}

/** As the original. */
export function assertMatch(actual: string, expected: RegExp): void {
  strict.match(actual, expected);
}

/** As the original: the error is of the type and its message has the part. */
export function assertThrows(
  fn: () => unknown,
  type: ErrorClass,
  part = "",
): void {
  strict.throws(fn, (error) => is(error, type, part));
}

/** As the original: the error is of the type and its message has the part. */
export async function assertRejects(
  fn: () => Promise<unknown>,
  type: ErrorClass,
  part = "",
): Promise<void> {
  await strict.rejects(fn, (error) => is(error, type, part));
}

function is(error: unknown, type: ErrorClass, part: string): boolean {
  return error instanceof type && error.message.includes(part);
}
