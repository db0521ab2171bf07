"""What was compiled is kept, up to a size."""

import asyncio

from ring_ray.rewards.sandbox.compiled import CompileCache
from ring_ray.rewards.sandbox.execution import Ending, Execution


class Compiler:
    """Makes programs of ``size`` bytes."""

    def __init__(self, size: int = 10, ending: Ending = Ending.DONE) -> None:
        self._size, self._ending = size, ending
        self.compiled = 0

    async def __call__(self) -> Execution:
        self.compiled += 1
        await asyncio.sleep(0)
        return Execution(ending=self._ending, reason="", result=b"x" * self._size)


def test_the_same_source_compiles_once_even_at_the_same_time() -> None:
    async def ask() -> tuple[Execution, ...]:
        cache, one, other = CompileCache(100), Compiler(), Compiler()
        asked = await asyncio.gather(cache.get("a", one), cache.get("a", one), cache.get("b", other))
        again = await cache.get("a", one)
        assert (one.compiled, other.compiled) == (1, 1)
        return (*asked, again)

    first, second, other, again = asyncio.run(ask())
    assert first is second is again is not other


def test_the_one_that_was_not_asked_for_the_longest_goes_first() -> None:
    async def ask() -> list[int]:
        cache, compilers = CompileCache(25), [Compiler(), Compiler(), Compiler()]
        for number in (0, 1, 0, 2, 0, 2, 1):
            await cache.get(str(number), compilers[number])
        return [compiler.compiled for compiler in compilers]

    assert asyncio.run(ask()) == [1, 2, 1]


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    async def ask() -> int:
        cache, large = CompileCache(5), Compiler()
        await cache.get("a", large)
        await cache.get("a", large)
        return large.compiled

    assert asyncio.run(ask()) == 2


def test_a_failure_of_ours_is_not_kept_but_an_error_of_the_source_is() -> None:
    async def ask() -> tuple[int, int]:
        cache, failing, wrong = CompileCache(100), Compiler(ending=Ending.FAILED), Compiler(ending=Ending.CRASHED)
        for _ in range(2):
            await cache.get("a", failing)
            await cache.get("b", wrong)
        return failing.compiled, wrong.compiled

    assert asyncio.run(ask()) == (2, 1)


def test_one_who_no_longer_waits_does_not_stop_the_others() -> None:
    async def ask() -> Execution:
        cache, slow = CompileCache(100), Compiler()
        one = asyncio.create_task(cache.get("a", slow))
        other = asyncio.create_task(cache.get("a", slow))
        await asyncio.sleep(0)
        one.cancel()
        return await other

    assert asyncio.run(ask()).ending is Ending.DONE
