// kin KIND: a parent and a child; the child's pid stands in the file `child`. The child waits, holding
//   file      the file `precious` as descriptor 40
//   outside   descriptor 7 (its parent closes it), from which it copies to stdout
// On the file `go` the parent ends the child and exits with 7.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static int child(const char *kind) {
    char b[256];
    ssize_t n;
    prctl(PR_SET_NAME, "kin-child", 0, 0, 0);
    if (!strcmp(kind, "file") && dup2(open("precious", O_RDWR | O_CREAT, 0600), 40) != 40) return 3;
    if (write(1, "ready 1\n", 8) != 8) return 2;
    if (!strcmp(kind, "outside")) while ((n = read(7, b, sizeof b)) > 0) if (write(1, b, n) != n) return 4;
    for (;;) pause();
}
int main(int argc, char **argv) {
    struct timespec t = {0, 3000000};
    int status;
    if (argc < 2) return 2;
    FILE *f = fopen("child.draft", "w");
    pid_t pid = fork();
    if (pid == 0) _exit(child(argv[1]));
    if (!f || pid < 0 || fprintf(f, "%d", pid) < 1 || fclose(f) || rename("child.draft", "child")) return 2;
    close(7);
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    kill(pid, SIGTERM);
    return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM ? 7 : 8;
}
