// hasty: 64 threads and a child that sleep; the main thread looks without a pause for the file `go`, kills the child and
// exits with 7, while others of them may not have been let go yet.
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>
static void *rest(void *none) {
    for (;;) pause();
    return none;
}
int main(void) {
    pid_t child = fork();
    if (child == 0) rest(NULL);
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setstacksize(&a, 64 * 1024);
    for (int i = 0; i < 64; i++) {
        pthread_t t;
        if (child < 0 || pthread_create(&t, &a, rest, NULL)) return 3;
    }
    if (write(1, "ready 1\n", 8) != 8) return 2;
    while (access("go", F_OK) != 0) {}
    int status;
    kill(child, SIGKILL);
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status) ? 7 : 4;
}
