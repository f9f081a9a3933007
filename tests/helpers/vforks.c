// vforks: a thread waits for ever for its vfork(2) child, so that the kernel stops it for nobody. Waits for the file `go` and
// ends with 7, after the child.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
static volatile pid_t child;
static void *thread(void *unused) {
    pid_t pid = vfork();
    if (pid == 0) {
        child = getpid();
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        for (;;) pause();
    }
    return unused;
}
int main(void) {
    struct timespec t = {0, 3000000};
    pthread_t other;
    if (pthread_create(&other, NULL, thread, NULL)) return 2;
    while (child == 0) nanosleep(&t, NULL);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    kill(child, SIGKILL);
    pthread_join(other, NULL);
    return 7;
}
