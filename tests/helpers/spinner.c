// spinner N [fork [calm] | leaderless]: N threads (leaderless: the first has ended, another counts for it), or processes in a tree, count for ever in
// a shared file `count` (one cache line each): the count, a twin that must always be count * K + id, and a word that is set for good once the two
// disagree or a signal mask changes. Calm ones do so seldom.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#define K 0x9e3779b97f4a7c15ULL
struct line { volatile uint64_t count, twin, wrong, pad[5]; };
static struct line *lines;
static int processes, calm;
static pthread_t leader;
static void *spin(void *arg) {
    uint64_t id = (uint64_t)arg, a = 0, b = id;
    struct line *l = &lines[id];
    double d = 1.5;
    for (;;) {
        a++; b += K; d = d * 1.0000001 + 0.5;
        if (b != a * K + id) l->wrong = 1;
        l->count = a; l->twin = b;
        if (d > 1e15) d = 1.5;
        if (!(d >= 1.5)) l->wrong = 2;
        if ((calm || (a & 0x3fff) == 0) && (processes || (id & 1))) { // odd threads also sleep, and must not see EINTR
            struct timespec t = {0, processes ? 2000000 : 200000};
            if (calm) clock_gettime(CLOCK_MONOTONIC, &t); // until a point in time: nothing need be known of what remains
            t.tv_nsec += calm ? 200000000 : 0;
            if (t.tv_nsec > 999999999) t.tv_nsec -= 1000000000, t.tv_sec++;
            if (clock_nanosleep(CLOCK_MONOTONIC, calm ? TIMER_ABSTIME : 0, &t, NULL) != 0) l->wrong = 3;
        }
        if ((a & 0xfffff) == 0) {
            sigset_t s;
            pthread_sigmask(SIG_BLOCK, NULL, &s);
            if (!sigismember(&s, SIGUSR2) || sigismember(&s, SIGTERM) || sigismember(&s, SIGURG)) l->wrong = 4;
        }
    }
    return NULL;
}
static void ready(void) { if (write(1, "ready 1\n", 8) != 8) _exit(2); }
static void *heir(void *arg) {
    if (pthread_join(leader, NULL)) _exit(2);
    ready();
    return spin(arg);
}
static void family(long id, long n) { // its children are 2 id + 1 and 2 id + 2
    for (long next = 2 * id + 1; next <= 2 * id + 2 && next < n; next++) if (fork() == 0) family(next, n);
    if (id > 0) spin((void *)id);
}
int main(int argc, char **argv) {
    int n = argc > 1 ? atoi(argv[1]) : 1, fd = open("count", O_RDWR | O_CREAT, 0644);
    pthread_t t;
    sigset_t s;
    sigemptyset(&s); sigaddset(&s, SIGUSR2); sigprocmask(SIG_BLOCK, &s, NULL);
    size_t len = (n * sizeof *lines + 4095) & ~4095UL;
    if (fd < 0 || ftruncate(fd, len) != 0) return 2;
    lines = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (lines == MAP_FAILED) return 2;
    int leaderless = argc > 2 && !strcmp(argv[2], "leaderless");
    processes = argc > 2 && !leaderless;
    calm = argc > 3;
    if (processes) family(0, n);
    for (long i = 1; !processes && i < n; i++) if (pthread_create(&t, NULL, spin, (void *)i)) return 2;
    leader = pthread_self();
    if (leaderless && !pthread_create(&t, NULL, heir, NULL)) pthread_exit(NULL);
    ready();
    spin((void *)0);
}
