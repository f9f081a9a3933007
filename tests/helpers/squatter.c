// squatter PID: makes a child with exactly that pid, which waits to be killed.
#define _GNU_SOURCE
#include <linux/sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    pid_t want = argc > 1 ? atoi(argv[1]) : 0;
    struct clone_args args = {.exit_signal = 17, .set_tid = (uintptr_t)&want, .set_tid_size = 1};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0 || (pid > 0 && write(1, "ready 1\n", 8) != 8)) return 2;
    for (;;) pause();
}
