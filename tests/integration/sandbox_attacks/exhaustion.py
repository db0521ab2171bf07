"""Processes, memory, output, time, disk and descriptors without end."""

from ring_ray.rewards.sandbox.execution import Ending
from tests.integration.sandbox_attacks.attack import attack

ANY_LIMIT = (Ending.TIME_LIMIT, Ending.MEMORY_LIMIT, Ending.OUTPUT_LIMIT, Ending.CRASHED)

ATTACKS = [
    attack("fork bomb", "while True:\n    try: os.fork()\n    except OSError: pass", *ANY_LIMIT),
    attack(
        "fork bomb that outlives its parent",
        """
        while True:
            try:
                if os.fork(): os._exit(0)
                os.setsid()
            except OSError: time.sleep(0.001)
        """,
        Ending.DONE,
        *ANY_LIMIT,
    ),
    attack("thread bomb", "while True: threading.Thread(target=time.sleep, args=(60,)).start()", *ANY_LIMIT),
    attack("memory bomb", "held = []\nwhile True: held.append(bytearray(b'x' * (1 << 24)))", *ANY_LIMIT),
    attack(
        "memory bomb of many processes, each within its own limit",
        """
        for _ in range(16):
            if os.fork() == 0: break
        held = bytearray(os.urandom(1 << 20)) * 64
        time.sleep(60)
        """,
        Ending.MEMORY_LIMIT,
        Ending.TIME_LIMIT,
    ),
    attack(
        "memory that belongs to all",
        """
        held = []
        while True:
            held.append(mmap.mmap(-1, 1 << 24)); held[-1].write(b"x" * (1 << 24))
        """,
        *ANY_LIMIT,
    ),
    attack("one huge number", "print(len(str(9 ** 9 ** 9)))", *ANY_LIMIT),
    attack("recursion without end", "sys.setrecursionlimit(10**9)\ndef f(): return f()\nf()", *ANY_LIMIT),
    attack("endless output", "while True: sys.stdout.write('x' * 65536)", Ending.OUTPUT_LIMIT, Ending.CRASHED),
    attack("endless errors", "while True: sys.stderr.write('x' * 65536)", Ending.OUTPUT_LIMIT, Ending.CRASHED),
    attack("output that grows by truncation", "os.ftruncate(1, 1 << 40)", Ending.CRASHED, Ending.OUTPUT_LIMIT),
    attack("endless loop", "while True: pass", Ending.TIME_LIMIT),
    attack("sleeping past the limit", "time.sleep(3600)", Ending.TIME_LIMIT),
    attack(
        "sleeping with every signal blocked",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: time.sleep(3600)",
        Ending.TIME_LIMIT,
    ),
    attack(
        "ignoring the limit of processor time",
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        Ending.TIME_LIMIT,
    ),
    attack(
        "processor time in children",
        """
        while True:
            if os.fork() == 0:
                while True: pass
            os.wait()
        """,
        Ending.TIME_LIMIT,
    ),
    attack(
        "one huge file",
        "with open('/tmp/huge', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
        Ending.CRASHED,
    ),
    attack(
        "many files",
        "for number in range(10**6): open(f'/tmp/{number}', 'wb').write(bytes(1 << 16))",
        Ending.CRASHED,
    ),
    attack(
        "a file in the shared memory directory",
        "with open('/dev/shm/huge', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
        Ending.CRASHED,
    ),
    attack("descriptors without end", "held = []\nwhile True: held.append(os.open('/', 0))", Ending.CRASHED),
    attack(
        "a raised limit",
        """
        import resource
        attempt(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)) or "raised")
        attempt(lambda: resource.setrlimit(resource.RLIMIT_NPROC, (-1, -1)) or "raised")
        attempt(lambda: resource.setrlimit(resource.RLIMIT_CPU, (-1, -1)) or "raised")
        """,
    ),
    attack("memory that belongs to no process", "attempt(lambda: os.memfd_create('hidden'))"),
    attack("memory that stays when it is unmapped but for a page", "attempt(lambda: mmap.mmap(-1, 1 << 20))"),
    attack("the same, of a device", "attempt(lambda: mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20))"),
    attack("attributes of its output", "attempt(lambda: os.setxattr(1, 'user.hidden', bytes(1 << 16)) or 'kept')"),
    attack("attributes of a file", "attempt(lambda: os.setxattr('main.py', 'user.hidden', b'x') or 'kept')"),
    attack(
        "a socket with a large buffer",
        "attempt(lambda: socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24) or 'set')",
    ),
]
