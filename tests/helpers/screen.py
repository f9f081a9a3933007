# screen with a shell and a pager inside: checkpointed with --kill, restarted, three times. What the windows show is the same
# afterwards, commands arrive over its socket, a terminal attaches. Arguments: the ckpt binary; works in the current directory.
import os, pty, select, subprocess, sys, time
sys.dont_write_bytecode = True
from orphans import reap

CKPT, HERE = sys.argv[1], os.getcwd()
os.environ.pop('STY', None)
os.environ.update(SCREENDIR=HERE + '/s', PS1='$ ', SHELL='/bin/sh', TERM='screen')
os.mkdir('s', 0o700)

def screen(*args):
    done = subprocess.run(['screen', '-c', '/dev/null', *args], capture_output=True, text=True, timeout=1000)
    if done.returncode: raise SystemExit('FAIL: screen %s: %s %s' % (args, done.stdout, done.stderr))

def shown(window):
    if os.path.exists('copy'): os.remove('copy')
    screen('-S', 't', '-p', window, '-X', 'hardcopy', HERE + '/copy')
    for _ in range(5000):
        if os.path.exists('copy'): break
        time.sleep(0.02)
    time.sleep(0.02)
    return open('copy').read()

def expect(window, text):
    for _ in range(5000):
        if text in shown(window): return
        time.sleep(0.02)
    raise SystemExit('FAIL: waited for %r, the window shows %r' % (text, shown(window)))

def typed(window, keys): screen('-S', 't', '-p', window, '-X', 'stuff', keys.replace('$', r'\$'))

def settled():
    before = None
    for _ in range(1000):
        now = [shown('shell'), shown('pager')]
        if now == before: return now
        before = now
        time.sleep(0.1)
    raise SystemExit('FAIL: the windows do not come to rest')

def attached(say, want):
    pid, terminal = pty.fork()
    if pid == 0: os.execvp('screen', ['screen', '-c', '/dev/null', '-r', 't', '-p', 'shell'])
    seen, said = b'', False
    end = time.monotonic() + 100
    while want not in seen:
        if not said and b'$ ' in seen: said = os.write(terminal, say)
        if time.monotonic() > end: raise SystemExit('FAIL: attached, waited for %r: %r' % (want, seen))
        if select.select([terminal], [], [], 0.1)[0]: seen += os.read(terminal, 4096)
    os.write(terminal, b'\1d')
    while True:
        try:
            if not os.read(terminal, 4096): break
        except OSError: break
    os.close(terminal)
    status = os.waitpid(pid, 0)[1]
    if status: raise SystemExit('FAIL: the attached screen ended with %d' % status)

screen('-d', '-m', '-S', 't', '-t', 'shell', 'bash', '--norc', '--noprofile', '-i')
open('text', 'w').write(''.join('line %d\n' % i for i in range(500)))
for _ in range(500):
    names = os.listdir('s')
    if names: break
    time.sleep(0.02)
server = names[0].split('.')[0]
restart = None
try:
    expect('shell', '$\n')
    screen('-S', 't', '-X', 'screen', '-t', 'pager', 'less', 'text'); expect('pager', 'line 0\n')
    typed('shell', 'n=1; echo first-$n\n'); expect('shell', '\nfirst-1')
    before = os.stat('s/' + names[0])
    for generation in '123':
        windows, image = settled(), 'image' + generation
        subprocess.run([CKPT, 'checkpoint', '--kill', '-o', image, server], check=True)
        if restart: restart.wait(timeout=100)
        reap()
        restart = subprocess.Popen([CKPT, 'restart', '-i', image], stdin=subprocess.DEVNULL)
        for _ in range(500):
            ready = subprocess.run(['screen', '-S', 't', '-X', 'select', '0'], capture_output=True).returncode == 0
            if ready or restart.poll() is not None: break
            time.sleep(0.02)
        if not ready: raise SystemExit('FAIL: no server after restart %s: %s' % (generation, restart.poll()))
        now = settled()
        if now != windows: raise SystemExit('FAIL: it showed %r and shows %r' % (windows, now))
        again = os.stat('s/' + names[0])
        if (again.st_mode, again.st_uid) != (before.st_mode, before.st_uid): raise SystemExit('FAIL: mode of the socket')
        typed('shell', 'n=$((n+1)); echo gen-%s-$n\n' % generation)
        expect('shell', '\ngen-%s-%d' % (generation, int(generation) + 1))
        typed('pager', ' '); expect('pager', 'line %d\n' % (int(generation) * 23))
        attached(b'echo attached-%s-$n\n' % generation.encode(), b'attached-%s-%d\r' % (generation.encode(), int(generation) + 1))
    if os.listdir('s') != names: raise SystemExit('FAIL: beside the socket there is %r' % os.listdir('s'))
finally:
    subprocess.run(['screen', '-S', 't', '-X', 'quit'], capture_output=True)
if restart.wait(timeout=100) != 0: raise SystemExit('FAIL: restart ended with %d' % restart.returncode)
print('ok')
