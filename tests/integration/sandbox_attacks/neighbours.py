"""The network, other processes, and what a program leaves for the next one."""

from ring_ray.rewards.sandbox.execution import Ending
from tests.integration.sandbox_attacks.attack import ANYHOW, attack

ATTACKS = [
    attack("a connection to this machine", "attempt(lambda: socket.create_connection(('127.0.0.1', @PORT@), 1))"),
    attack("a connection to the world", "attempt(lambda: socket.create_connection(('192.0.2.1', 80), 1))"),
    attack("a name", "attempt(lambda: socket.getaddrinfo('example.org', 80))"),
    attack(
        "a datagram",
        "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@)))",
    ),
    attack(
        "an abstract socket of the judge's machine",
        "attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0ring_ray-attack-@JUDGE@') or 'connected')",
    ),
    attack(
        "an abstract socket, from one of a pair",
        "pair = socket.socketpair(type=socket.SOCK_DGRAM)\n"
        "attempt(lambda: pair[0].sendto(b'x', '\\0ring_ray-attack-@JUDGE@'))",
    ),
    attack("a server", "attempt(lambda: socket.create_server(('127.0.0.1', 0)))"),
    attack(
        "a network interface other than loopback",
        "attempt(lambda: [name for _, name in socket.if_nameindex() if name != 'lo'])",
    ),
    attack("killing everybody", "attempt(lambda: os.kill(-1, signal.SIGKILL))", *ANYHOW),
    attack("killing the first process", "attempt(lambda: os.kill(1, signal.SIGKILL))\ntime.sleep(0.2)", *ANYHOW),
    attack("killing the judge", "attempt(lambda: os.kill(@JUDGE@, signal.SIGKILL) or 'sent')"),
    attack("killing the parent", "attempt(lambda: os.kill(os.getppid() or 1, signal.SIGTERM))", *ANYHOW),
    attack("stopping oneself", "os.kill(os.getpid(), signal.SIGSTOP)", Ending.TIME_LIMIT),
    attack(
        "a daemon",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for fd in range(3): os.close(fd)
                while True: time.sleep(1)
            os._exit(0)
        """,
    ),
    attack(
        "daemons that come back",
        """
        def come_back(*_): os.fork()
        for number in range(1, 32):
            try: signal.signal(number, come_back)
            except (OSError, ValueError): pass
        if os.fork() == 0:
            os.setsid()
            while True: time.sleep(1)
        """,
    ),
    attack(
        "output after the end",
        "if os.fork() == 0:\n    time.sleep(0.5)\n    os.write(1, b'escaped')\n    os._exit(0)",
    ),
    attack(
        "files for the next program",
        """
        for directory in ("/tmp", "/dev/shm", "/var/tmp", "/", "/usr/lib/python3", "/sandbox", sys.prefix):
            try: open(directory + "/left-over", "w").write("escaped")
            except OSError: pass
        """,
    ),
    attack(
        "files that an earlier program left",
        """
        directories = ("/tmp", "/dev/shm", "/var/tmp", "/", "/sandbox")
        attempt(lambda: [path for directory in directories for path in glob.glob(directory + "/left-over")])
        """,
    ),
    attack(
        "changing the interpreter for the next program",
        """
        import builtins, json
        builtins.print = lambda *words: None
        builtins.len = json.loads = lambda value: "escaped"
        sys.modules.clear()
        """,
        *ANYHOW,
    ),
    attack(
        "the worker's code",
        "attempt(lambda: open('/sandbox/ring_ray/rewards/sandbox/inside/worker.py', 'a').write('x'))",
    ),
    attack(
        "a link in place of a file that the sandbox writes",
        "os.remove('main.py')\nos.symlink('/proc/1/mem', 'main.py')\nos.symlink('/', 'root')\n"
        "attempt(lambda: os.listdir('root/home'))",
    ),
]
