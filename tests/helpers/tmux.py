# tmux with a shell and vim inside: checkpointed with --kill, restarted, three times. What the panes show is the same afterwards,
# keys arrive, new clients connect. Arguments: the ckpt binary; works in the current directory.
import os, subprocess, sys, time
sys.dont_write_bytecode = True
from orphans import reap

CKPT, HERE = sys.argv[1], os.getcwd()
for name in 'TMUX', 'TMUX_PANE': os.environ.pop(name, None)
os.environ.update(TMUX_TMPDIR=HERE, PS1='$ ', SHELL='/bin/sh', TERM='screen')

def tmux(*args):
    done = subprocess.run(['tmux', '-L', 'test', '-f', '/dev/null', *args], capture_output=True, text=True, timeout=1000)
    if done.returncode: raise SystemExit('FAIL: tmux %s: %s' % (args, done.stderr))
    return done.stdout

def shown(pane): return tmux('capture-pane', '-p', '-t', 't:' + pane)

def expect(pane, text):
    for _ in range(5000):
        if text in shown(pane): return
        time.sleep(0.02)
    raise SystemExit('FAIL: waited for %r, the pane shows %r' % (text, shown(pane)))

def settled():
    before = None
    for _ in range(1000):
        now = [shown('shell'), shown('edit'), tmux('list-panes', '-a')]
        if now == before: return now
        before = now
        time.sleep(0.1)
    raise SystemExit('FAIL: the panes do not come to rest')

shell = 'exec bash --norc --noprofile -i'
tmux('new-session', '-d', '-s', 't', '-n', 'shell', '-x', '80', '-y', '24', shell)
tmux('new-window', '-d', '-t', 't', '-n', 'edit', 'exec vim -u NONE -i NONE -n text')
server = tmux('display-message', '-p', '#{pid}').strip()
restart = None
try:
    tmux('send-keys', '-t', 't:shell', 'n=1; echo first-$n', 'Enter'); expect('shell', '\nfirst-1')
    tmux('send-keys', '-t', 't:edit', 'i', 'one', 'Enter'); expect('edit', 'one\n')
    socket = os.stat(HERE + '/tmux-%d/test' % os.getuid())
    for generation in '123':
        before, image = settled(), 'image' + generation
        subprocess.run([CKPT, 'checkpoint', '--kill', '-o', image, server], check=True)
        if restart: restart.wait(timeout=100)
        reap()
        restart = subprocess.Popen([CKPT, 'restart', '-i', image], stdin=subprocess.DEVNULL)
        for _ in range(5000):
            ready = subprocess.run(['tmux', '-L', 'test', 'has-session', '-t', 't'], capture_output=True).returncode == 0
            if ready or restart.poll() is not None: break
            time.sleep(0.02)
        if not ready: raise SystemExit('FAIL: no server after restart %s: %s' % (generation, restart.poll()))
        now = settled()
        if now != before: raise SystemExit('FAIL: it showed %r and shows %r' % (before, now))
        if tmux('display-message', '-p', '#{pid}').strip() != server: raise SystemExit('FAIL: another server')
        again = os.stat(HERE + '/tmux-%d/test' % os.getuid())
        if (again.st_mode, again.st_uid) != (socket.st_mode, socket.st_uid): raise SystemExit('FAIL: mode of the socket')
        tmux('send-keys', '-t', 't:shell', 'n=$((n+1)); echo gen-%s-$n' % generation, 'Enter')
        expect('shell', '\ngen-%s-%d' % (generation, int(generation) + 1))
        tmux('send-keys', '-t', 't:edit', 'line' + generation, 'Enter'); expect('edit', 'line%s\n' % generation)
    left = os.listdir(HERE + '/tmux-%d' % os.getuid())
    if left != ['test']: raise SystemExit('FAIL: beside the socket there is %r' % left)
    tmux('send-keys', '-t', 't:edit', 'Escape', ':wq', 'Enter')
    text = ''
    for _ in range(2500):
        if os.path.exists('text'): text = open('text').read()
        if text == 'one\nline1\nline2\nline3\n\n': break
        time.sleep(0.02)
    else: raise SystemExit('FAIL: vim wrote %r' % text)
finally:
    subprocess.run(['tmux', '-L', 'test', 'kill-server'], capture_output=True)
if restart.wait(timeout=100) != 0: raise SystemExit('FAIL: restart ended with %d' % restart.returncode)
print('ok')
