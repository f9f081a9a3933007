// epolls: waits in epoll_wait(2), which nothing but SIGTERM ends, with EINTR: then it ends with 7.
#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>
static volatile sig_atomic_t got;
static void on(int unused) {
    (void)unused;
    got = 1;
}
int main(void) {
    struct epoll_event event;
    struct sigaction action = {.sa_handler = on, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    int epoll = epoll_create1(0);
    if (epoll < 0 || write(1, "ready 1\n", 8) != 8) return 2;
    int result = epoll_wait(epoll, &event, 1, -1);
    return result == -1 && errno == EINTR && got ? 7 : 3;
}
