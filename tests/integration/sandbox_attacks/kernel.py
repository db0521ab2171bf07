"""What only the kernel could give."""

from ring_ray.rewards.sandbox.execution import Ending
from tests.integration.sandbox_attacks.attack import attack

CALLS = {
    "ptrace of the first process": (101, "16, 1, 0, 0"),
    "a new user namespace": (272, "0x10000000"),
    "a new mount namespace": (272, "0x00020000"),
    "a mount": (165, "b'none', b'/tmp', b'tmpfs', 0, 0"),
    "an unmount": (166, "b'/proc', 2"),
    "another root": (161, "b'/tmp'"),
    "a program of the kernel's": (321, "0, 0, 0"),
    "a ring of system calls": (425, "8, bytes(120)"),
    "faults in user space": (323, "0"),
    "the kernel's keys": (250, "0, -3, 1"),
    "performance counters": (298, "bytes(128), 0, -1, -1, 0"),
    "a process of new namespaces": (56, "0x10000000 | 17, 0, 0, 0, 0"),
    "reading the first process's memory": (310, "1, 0, 0, 0, 0, 0"),
    "another host name": (170, "b'mine', 4"),
    "the clock": (227, "0, bytes(16)"),
    "the kernel's log": (103, "3, bytes(64), 64"),
    "pages that wait in a pipe": (278, "os.pipe()[1], 0, 0, 0"),
    "asynchronous input, of which the machine has so much": (206, "1, ctypes.create_string_buffer(8)"),
}

ATTACKS = [
    *(attack(name, f"attempt(lambda: call({number}, {words}))") for name, (number, words) in CALLS.items()),
    attack("a call of the 32-bit kind", "attempt(lambda: call(0x40000000 + 39))"),
    attack("becoming root", "attempt(lambda: os.setuid(0) or os.listdir('/proc/1/fd'))"),
    attack(
        "a program that makes root",
        """
        for path in glob.glob("/usr/bin/*"):
            if os.stat(path).st_mode & 0o4000:
                text = subprocess.run([path, "--version"], capture_output=True).stdout
        status = open("/proc/self/status").read()
        attempt(lambda: "NoNewPrivs:\\t1" not in status and status)
        attempt(lambda: [line for line in status.splitlines() if line.startswith("Cap") and int(line.split()[1], 16)])
        """,
    ),
    attack("a device", "attempt(lambda: os.mknod('/tmp/disk', 0o60666, os.makedev(8, 0)) or 'made')"),
    attack("the kernel's settings", "attempt(lambda: open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x'))"),
    attack("the terminal", "import fcntl\nattempt(lambda: open('/dev/tty', 'w').write('x'))"),
    attack(
        "code of one's own",
        "code = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)\ncode.write(b'\\x0f\\x0b')\n"
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
        Ending.CRASHED,
    ),
]
