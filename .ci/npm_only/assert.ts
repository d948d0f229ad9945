// Stands in for jsr:@std/assert where only npm can be reached: what the test
// uses of it, on node:assert.

import strict from "node:assert/strict";
