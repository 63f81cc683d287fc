"""A parallel loop for kernels, on the threads of XLA's own pool.

Each thread has a share of its own, neighbouring chunks, so that what it fetches ahead of one chunk is what it needs
for the next; whoever is done takes chunks from the shares of others.
"""

from llvmlite import ir

from .ffi import API_NUM_THREADS, API_SCHEDULE, FRAME_CONTEXT, api_call
from .jit import I64, POINTER, VOID, Code, declare, features, function

# Fields of the loop's state. The counters that threads fight over have cache lines of their own.
_DONE, _JOINED, _REFERENCES, _SHARES, _BODY, _CONTEXT, _STATE_BYTES = 0, 64, 128, 136, 144, 152, 192
# Behind them the shares, a cache line each: the next chunk, and the one behind the last.
_NEXT, _END, _SHARE_BYTES = 0, 8, 64

_SPINS = 2048
"""How often a waiting thread looks again before it offers its core to others."""

BODY = ir.FunctionType(VOID, [POINTER, I64])
"""A loop body: called with the loop's context and the number of a chunk."""


def parallel_for(module: ir.Module) -> ir.Function:
    """The module's function `parallel_for(frame, num_chunks, body, context)`; `frame` is Frame.pointer.

    The calling thread works too, and chunks are claimed one by one, of other shares as well, so the loop ends even if
    no other thread ever comes; a thread that comes late finds no chunk left and never touches `context`, which may be
    on the stack.
    """
    name = "parallel_for"
    if name in module.globals:
        return module.globals[name]
    work, task = _work(module), _task(module)
    made, code = function(module, name, VOID, [POINTER, I64, POINTER, POINTER])
    frame, count, body, context = made.args

    num_threads = code.stack(8)
    code.write(code.i64(1), num_threads)
    pool = code.read(POINTER, frame, FRAME_CONTEXT)
    several = code.icmp_signed(">", count, code.i64(1))
    with code.if_then(several):
        api_call(code, frame, API_NUM_THREADS, pool, num_threads)
    helpers = code.sub(code.least(code.read(I64, num_threads), count), code.i64(1))
    with code.if_then(code.icmp_signed("<=", helpers, code.i64(0))):

        def alone(chunk: ir.Value) -> None:
            code.call_pointer(body, BODY, context, chunk)

        code.loop(count, alone)
        code.ret_void()

    shares = code.plus(helpers, 1)
    state = code.intrinsic("malloc", POINTER, code.plus(code.times(shares, _SHARE_BYTES), _STATE_BYTES))
    for value, where in (
        (code.i64(0), _DONE),
        (code.i64(0), _JOINED),
        (shares, _REFERENCES),
        (shares, _SHARES),
        (body, _BODY),
        (context, _CONTEXT),
    ):
        code.write(value, state, where)

    def share(number: ir.Value) -> None:
        first, end = (code.udiv(code.times(count, each), shares) for each in (number, code.plus(number, 1)))
        entry = code.at(state, code.times(number, _SHARE_BYTES), _STATE_BYTES)
        code.write(first, entry, _NEXT)
        code.write(end, entry, _END)

    code.loop(shares, share)

    def schedule(_: ir.Value) -> None:
        accepted = api_call(code, frame, API_SCHEDULE, pool, code.address(task), state)
        with code.if_then(code.not_(accepted), likely=False):
            code.atomic_rmw("sub", code.at(state, _REFERENCES), code.i64(1), "acq_rel")

    code.loop(helpers, schedule)
    code.call(work, [state])
    _wait(code, state, count)
    code.call(_release(module), [state])
    code.ret_void()
    return made


def _work(module: ir.Module) -> ir.Function:
    """Claims chunks and runs them until none is left, those of a share of its own first."""
    made, code = function(module, "parallel_for.work", VOID, [POINTER])
    (state,) = made.args
    shares, body = code.read(I64, state, _SHARES), code.read(POINTER, state, _BODY)
    context = code.read(POINTER, state, _CONTEXT)
    own = code.atomic_rmw("add", code.at(state, _JOINED), code.i64(1), "monotonic")

    def one_share(beyond: ir.Value) -> None:
        number = code.urem(code.plus(own, beyond), shares)
        entry = code.at(state, code.times(number, _SHARE_BYTES), _STATE_BYTES)
        last = code.read(I64, entry, _END)
        claim, run, end = (code.append_basic_block(name) for name in ("claim", "run", "end"))
        code.branch(claim)
        code.position_at_end(claim)
        chunk = code.atomic_rmw("add", code.at(entry, _NEXT), code.i64(1), "monotonic")
        code.cbranch(code.icmp_signed("<", chunk, last), run, end)
        code.position_at_end(run)
        code.call_pointer(body, BODY, context, chunk)
        code.atomic_rmw("add", code.at(state, _DONE), code.i64(1), "release")
        code.branch(claim)
        code.position_at_end(end)

    code.loop(shares, one_share)
    code.ret_void()
    return made


def _task(module: ir.Module) -> ir.Function:
    """What a thread of the pool is given."""
    made, code = function(module, "parallel_for.task", VOID, [POINTER])
    code.call(module.globals["parallel_for.work"], made.args)
    code.call(_release(module), made.args)
    code.ret_void()
    return made


def _release(module: ir.Module) -> ir.Function:
    """Gives up one reference; the last one frees the state."""
    name = "parallel_for.release"
    if name in module.globals:
        return module.globals[name]
    made, code = function(module, name, VOID, [POINTER])
    (state,) = made.args
    before = code.atomic_rmw("sub", code.at(state, _REFERENCES), code.i64(1), "acq_rel")
    with code.if_then(code.icmp_signed("==", before, code.i64(1))):
        code.call(declare(module, "free", VOID, [POINTER]), [state])
    code.ret_void()
    return made


def _wait(code: Code, state: ir.Value, count: ir.Value) -> None:
    """Waits for the chunks that others have claimed."""
    look, again, offer, after = (code.append_basic_block(name) for name in ("look", "again", "offer", "after"))
    before = code.block
    code.branch(look)
    code.position_at_end(look)
    spins = code.phi(I64)
    spins.add_incoming(code.i64(0), before)
    done = code.load_atomic(code.at(state, _DONE), "acquire", 8, typ=I64)
    code.cbranch(code.icmp_signed("==", done, count), after, again)
    code.position_at_end(again)
    if "sse2" in features():
        code.intrinsic("llvm.x86.sse2.pause", VOID)
    spun = code.plus(spins, 1)
    spins.add_incoming(spun, again)
    code.cbranch(code.icmp_signed("<", spun, code.i64(_SPINS)), look, offer)
    code.position_at_end(offer)
    code.intrinsic("sched_yield", ir.IntType(32))
    spins.add_incoming(code.i64(0), offer)
    code.branch(look)
    code.position_at_end(after)
