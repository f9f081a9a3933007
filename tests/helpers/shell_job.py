# A program checkpointed in one terminal and restarted from a shell in another: settings, window, foreground, Ctrl-C,
# Ctrl-Z, fg and bg. Arguments: the ckpt binary, and `criu` for that front end; works in the current directory.
import fcntl, os, pty, re, select, subprocess, sys, termios, time

CKPT = sys.argv[1]
if 'criu' in sys.argv:
    DUMP = [CKPT, 'criu', 'dump', '--shell-job', '-D', '.', '-t']
    RESTORE, DETACHED, STATUS = ['%s criu restore --shell-job -D .%s' % (CKPT, more) for more in ('', ' -d')] + ['0']
else:
    DUMP, STATUS = [CKPT, 'checkpoint', '--kill', '-o', 'image'], '7'
    RESTORE, DETACHED = CKPT + ' restart --copy-status -i image', CKPT + ' restart -W -i image'
NAME = RESTORE.split(' -')[0].split()[-1]
PROGRAM = r'''
import os, signal, sys, termios
t = termios.tcgetattr(0); t[3] &= ~termios.ECHO; termios.tcsetattr(0, 0, t)
n = 0
def interrupted(*_):
    global n; n += 1; print('<interrupt %d>' % n, flush=True)
    if n == 2: sys.exit(7)
signal.signal(signal.SIGINT, interrupted)
signal.signal(signal.SIGWINCH, lambda *_: print('<window %d %d>' % os.get_terminal_size(0), flush=True))
tty, third = os.open('/dev/tty', os.O_RDWR), os.dup(2)
print('<pid %d>' % os.getpid(), flush=True)
for line in iter(sys.stdin.readline, ''):
    os.write(tty, b'<tty>'); os.write(third, b'<third>')
    echo = 'echo' if termios.tcgetattr(0)[3] & termios.ECHO else 'quiet'
    ground = 'fore' if os.tcgetpgrp(0) == os.getpgrp() else 'back'
    print('<%s %s %s>' % (line.strip(), echo, ground), flush=True)
'''

class Shell:
    def __init__(self, size):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ['PS1'] = '$ '
            os.execvp('bash', ['bash', '--norc', '--noprofile', '--noediting', '-i'])
        termios.tcsetwinsize(self.master, size)
        self.seen = ''
        self.expect(r'\$ $')

    def type(self, text): os.write(self.master, text.encode())

    def expect(self, pattern):
        end = time.time() + 100
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.time()))
            if not ready: raise SystemExit('FAIL: waited for %r, saw %r' % (pattern, self.seen))
            self.seen += os.read(self.master, 4096).decode(errors='replace')
        self.seen = self.seen[found.end():]
        return found

    def end(self):
        os.close(self.master); os.waitpid(self.pid, 0)

open('program.py', 'w').write(PROGRAM)
here = sys.executable
shell = Shell((30, 90))
shell.type(here + ' program.py\n')
pid = shell.expect(r'<pid (\d+)>').group(1)
shell.type('first\n'); shell.expect('<tty><third><first quiet fore>')
if 'criu' in sys.argv:
    alone = subprocess.run([word for word in DUMP if word != '--shell-job'] + [pid], stderr=subprocess.PIPE, text=True)
    if alone.returncode != 1 or '--shell-job' not in alone.stderr: raise SystemExit('FAIL: without it: %r' % alone)
subprocess.run([*DUMP, pid], check=True)
shell.expect('Killed'); shell.end()

shell = Shell((40, 100))
shell.type(RESTORE + '\n'); shell.expect('<window 100 40>')
shell.type('second\n'); shell.expect('<tty><third><second quiet fore>')
shell.type('\x1a'); shell.expect(r'(?s)Stopped.*\$ ')
shell.type('stty -a | tr " " "\\n" | grep -x echo | sed s/^/is-/\n'); shell.expect(r'\nis-echo')
shell.type('fg\n'); shell.expect(NAME); time.sleep(0.3)
shell.type('third\n'); shell.expect('<tty><third><third quiet fore>')
shell.type('\x1a'); shell.expect(r'(?s)Stopped.*\$ ')
shell.type('bg\n'); shell.expect(r'(?s)&.*\$ ')
for _ in range(500):  # it reads, in the background, and is stopped for it
    shell.type('jobs; echo done-$((1+1))\n')
    if 'Stopped' in shell.expect(r'(?s)(.*)\ndone-2').group(1): break
    time.sleep(0.1)
else: raise SystemExit('FAIL: it does not stop in the background')
shell.type('fg\n'); shell.expect(NAME); time.sleep(0.3)
shell.type('fourth\n'); shell.expect('<tty><third><fourth quiet fore>')
shell.type('\x03'); shell.expect('<interrupt 1>')
shell.type('\x03'); shell.expect(r'(?s)<interrupt 2>.*\$ ')
shell.type('echo status $?\n'); shell.expect('\nstatus ' + STATUS)
# Killed, it cannot put the settings back: restart does.
shell.type(RESTORE + '\n'); shell.expect('<window 100 40>')
shell.type('fifth\n'); shell.expect('<fifth quiet fore>')
os.kill(int(pid), 9); shell.expect(r'\$ ')
shell.type('stty -a | tr " " "\\n" | grep -x echo | sed s/^/is-/\n'); shell.expect(r'\nis-echo')
# Not waited for, or in the background, it gets nothing.
shell.type(DETACHED + '; stty -a | tr " " "\\n" | grep -x echo | sed s/^/is-/\n'); shell.expect(r'\nis-echo')
try: os.kill(int(pid), 9)
except ProcessLookupError: pass  # it reads where it may not, fails, and has been seen off
shell.end()
print('ok')
