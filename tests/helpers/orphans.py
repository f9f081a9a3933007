# What is ours to wait for: the server of a test, and orphans of it, so that their pids are free as soon as they have ended.
import ctypes, os, time

if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0): raise SystemExit('FAIL: PR_SET_CHILD_SUBREAPER')

def reap():
    for _ in range(500):
        children = open('/proc/self/task/%d/children' % os.getpid()).read().split()
        if not children: return
        for pid in children: os.waitpid(int(pid), os.WNOHANG)
        time.sleep(0.02)
    raise SystemExit('FAIL: %r have not ended' % children)
