// execs N: a thread executes this program anew again and again, beside N idle ones, until the file `go` is there: then
// it ends with 7.
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
static char **arguments;
static void *idle(void *unused) {
    for (;;) pause();
    return unused;
}
static void *again(void *unused) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (volatile long n = now.tv_nsec / 1000 % 700 * 200; n > 0; n--) {}
    execv("/proc/self/exe", (char *[]){arguments[0], arguments[1], "again", NULL});
    _exit(3);
    return unused;
}
int main(int argc, char **argv) {
    arguments = argv;
    if (argc < 3 && write(1, "ready 1\n", 8) != 8) return 2;
    if (access("go", F_OK) == 0) return 7;
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (int n = atoi(argv[1]); n > 0; n--)
        if (pthread_create(&thread, &small, idle, NULL)) return 2;
    if (pthread_create(&thread, &small, again, NULL)) return 2;
    idle(NULL);
}
