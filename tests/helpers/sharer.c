// sharer KIND: a process and a child of it, whose pid stands in the file `child`. They share
//   pipe          the child reads from it by descriptor 50, the process writes to it by 51
//   description   of the file `shared`, descriptor 52
//   unlinked      a file without a name, each by a description of its own: 53 and 54
//   memfd         the same of a memfd
//   connection    a pair of unix sockets: the child has 55, the process 56
//   socket        a unix socket, 57
//   memory        MAP_SHARED | MAP_ANONYMOUS
//   vm, files, fs what clone(2) says
//   sleeper       none of these, standard descriptors apart
//   all           all that can be had at once, and a second child has it, too
// On the file `go` the process ends its children and exits with 7.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static char stack[65536] __attribute__((aligned(64)));
static int is_pipe, is_connection;
static int child(void *arg) {
    (void)arg;
    if (is_pipe) close(51);
    if (is_connection) close(56);
    while (pause()) continue;
    return 9;
}
static pid_t born(unsigned long flags) {
    // With memory in common it needs a stack of its own.
    if (flags & CLONE_VM) return clone(child, stack + sizeof stack, flags | SIGCHLD, NULL);
    pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) _exit(child(NULL));
    return pid;
}
static int moved(int from, int to) { return from >= 0 && dup2(from, to) == to && close(from) == 0; }
int main(int argc, char **argv) {
    struct timespec t = {0, 3000000};
    int ends[2], status;
    if (argc < 2) return 2;
    const char *kind = argv[1];
    int all = !strcmp(kind, "all");
    is_pipe = !strcmp(kind, "pipe");
    if (all || is_pipe) {
        if (pipe(ends) != 0 || !moved(ends[0], 50) || !moved(ends[1], 51)) return 3;
    }
    if (all || !strcmp(kind, "description")) {
        if (!moved(open("shared", O_RDWR | O_CREAT, 0600), 52)) return 3;
    }
    if (all || !strcmp(kind, "unlinked")) {
        if (!moved(open("nameless", O_RDWR | O_CREAT, 0600), 53) || unlink("nameless") != 0) return 3;
    }
    if (!strcmp(kind, "memfd") && !moved(memfd_create("both", 0), 53)) return 3;
    if (all || !strcmp(kind, "memory")) {
        char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return 3;
        *p = 1;
    }
    is_connection = !strcmp(kind, "connection");
    if (all || is_connection) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || !moved(ends[0], 55) || !moved(ends[1], 56)) return 3;
    }
    if (all || !strcmp(kind, "socket")) {
        if (!moved(socket(AF_UNIX, SOCK_DGRAM, 0), 57)) return 3;
    }
    unsigned long flags = 0;
    if (!strcmp(kind, "vm")) flags = CLONE_VM;
    if (!strcmp(kind, "files")) flags = CLONE_FILES;
    if (!strcmp(kind, "fs")) flags = CLONE_FS;
    FILE *f = fopen("child.draft", "w");
    if (!f) return 3;
    pid_t second = all ? born(0) : 0, pid = born(flags);
    if (pid < 0 || second < 0 || fprintf(f, "%d", pid) < 1 || fclose(f) || rename("child.draft", "child")) return 2;
    if (is_pipe) close(50);
    if (is_connection) close(55);
    if (!strcmp(kind, "unlinked") || !strcmp(kind, "memfd")) { // the child keeps 53
        if (!moved(open("/proc/self/fd/53", O_RDONLY), 54) || close(53) != 0) return 3;
    }
    if (write(1, "ready 1\n", 8) != 8) return 2;
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    if (second) kill(second, SIGTERM), waitpid(second, NULL, 0);
    kill(pid, SIGTERM);
    return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM ? 7 : 8;
}
