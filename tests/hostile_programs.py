"""Programs that try to break out, to cheat or to hang, for the tests of the sandboxes.

Each of HOSTILE prints GOT when it achieved what it must not. {folder} is a folder that a test looks into afterwards.
"""

LOOPS = {
    "loop": "while True: pass",
    "alarms off": "import signal\nfor s in (14, 15, 24, 27):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except Exception: pass\nwhile True: pass",
    "signals blocked": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\nwhile True: pass",
    "timer off": "import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass",
    "swallows all": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "sleep": "import time\ntime.sleep(60)\nprint('GOT')",
    "one long operation": "y = pow(7, 10**8)\nprint('GOT', y.bit_length())",
    "regex": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "output": "while True: print('y' * 1000)",
    "output by descriptor": "import os\nwhile True: os.write(1, b'y' * 65536)",
    "lists": "x = []\nwhile True: x.append('a' * 10**6)",
}
HOSTILE = LOOPS | {
    "file": "open('{folder}/file', 'w').write('x')\nprint('GOT')",
    "file by os": "import os\nd = os.open('{folder}/file', os.O_CREAT | os.O_WRONLY, 0o600)\n"
    "os.write(d, b'x')\nprint('GOT')",
    "folder": "import os\nos.mkdir('{folder}/folder')\nprint('GOT')",
    "read a file": "print('GOT', open('/etc/passwd').read()[:20])",
    "list a folder": "import os\nprint('GOT', len(os.listdir('/')))",
    "socket": "import socket\ns = socket.socket()\nprint('GOT')",
    "fork": "import os, time\nif os.fork() == 0: time.sleep(5)\nelse: print('GOT')",
    "thread": "import threading\nt = threading.Thread(target=int)\nt.start()\nprint('GOT')",
    "shell": "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo GOT > {folder}/file; echo GOT'])",
    "system": "import os\nprint('GOT' if os.system('touch {folder}/file') == 0 else '')",
    "subprocess": "import subprocess\nprint('GOT', subprocess.run(['id'], capture_output=True).stdout)",
    "kill the parent": "import os\nos.kill(os.getppid(), 9)\nprint('GOT')",
    "kill the group": "import os\nos.kill(0, 15)\nprint('GOT')",
    "kill everybody": "import os\nos.kill(-1, 9)\nprint('GOT')",
    "ten gigabytes": "x = bytearray(10**10)\nx[::4096] = b'x' * len(x[::4096])\nprint('GOT')",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nf(0)\nprint('GOT')",
    "null pointer": "import ctypes\nctypes.string_at(0)\nprint('GOT')",
    "open by ctypes": "import ctypes\nl = ctypes.CDLL(None)\nif l.open(b'/etc/passwd', 0) >= 0: print('GOT')",
    "raw system call": "import ctypes\nl = ctypes.CDLL(None)\nif l.syscall(57) >= 0 or l.syscall(41, 2, 1, 0) >= 0"
    " or l.syscall(2, b'/etc/passwd', 0) >= 0: print('GOT')",
    "environment": "import os\nif os.environ: print('GOT', sorted(os.environ))",
    "environment by C": "import ctypes\np = ctypes.CDLL(None).getenv\np.restype = ctypes.c_char_p\n"
    "if p(b'PATH') or p(b'HOME'): print('GOT')",
    "environment by proc": "print('GOT', open('/proc/self/environ', 'rb').read())",
    "memory of the parent": "import os\nprint('GOT', len(open('/proc/%d/mem' % os.getppid(), 'rb').read(1)))",
    "limits up": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('GOT')",
    "another user": "import os\nos.setuid(65534)\nprint('GOT')",
    "other descriptors": "import os\nfor d in range(3, 300):\n    try:\n        os.write(d, b'GOT')\n"
    "        print('GOT', d)\n    except OSError: pass",
}

# Functions `solve` that want full marks without knowing the result.
CHEATS = {
    "equal to all": "class E:\n    def __eq__(s, o): return True\n    def __ne__(s, o): return False\n"
    "    __hash__ = None\ndef solve(*a): return E()",
    "list equal to all": "class L(list):\n    def __eq__(s, o): return True\ndef solve(*a): return L()",
    "int equal to all": "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "    def __repr__(s): return 'true'\ndef solve(*a): return I(0)",
    "text that lies": "class S(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\n"
    "    def encode(s, *a): return b'[true]'\ndef solve(*a): return S('x')",
    "json patched": "import json\njson.dumps = lambda *a, **k: '[1, 2, 3]'\njson.JSONEncoder.encode = json.dumps\n"
    "def solve(*a): return 0",
    "builtins patched": "import builtins\nbuiltins.all = builtins.any = lambda *a: True\nbuiltins.len = lambda *a: 3\n"
    "builtins.isinstance = lambda *a: True\ndef solve(*a): return 0",
    "forged message": 'import os\nfor d in range(9):\n    try: os.write(d, b\'[-1, null]\\n[0, "1"]\\n[1, "2"]\\n\')\n'
    "    except OSError: pass\nos._exit(0)",
    "expected in a frame": "import sys\ndef solve(*a):\n    f = sys._getframe()\n    while f:\n"
    "        for k, v in {**f.f_globals, **f.f_locals}.items():\n"
    "            if 'expect' in k.lower() or 'want' in k.lower(): return v\n        f = f.f_back\n    return 0",
    "expected in memory": "import gc\ndef solve(*a):\n    for o in gc.get_objects():\n"
    "        if isinstance(o, dict) and any('expect' in str(k) for k in o): return list(o.values())[0]",
    "ends as if well": "def solve(*a): raise SystemExit(0)",
    "leaves as if well": "import os\ndef solve(*a): os._exit(0)",
}
