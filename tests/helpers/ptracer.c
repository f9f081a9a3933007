// ptracer PID: seizes PID as a debugger would, says so, and waits to be killed.
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc < 2 || ptrace(PTRACE_SEIZE, atoi(argv[1]), 0, 0) != 0) return 2;
    if (write(1, "ready 1\n", 8) != 8) return 2;
    for (;;) pause();
}
