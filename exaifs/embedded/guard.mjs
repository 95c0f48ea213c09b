// Preloaded (`node --import`) into every Node process that exaifs starts.
//
// The parent holds the other end of stdin and never writes to it. End of file means that the parent is
// gone, however it ended (kill -9 included): leave in good order, and if that hangs, leave anyway.
const GRACE_MS = 5000;

function leave() {
  process.kill(process.pid, "SIGTERM");
  setTimeout(() => process.kill(process.pid, "SIGKILL"), GRACE_MS).unref();
}

process.stdin.once("close", leave);
process.stdin.resume();
process.stdin.unref?.(); // watching must not keep a finished command alive
