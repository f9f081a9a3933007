// parks [ignores]: handles URG, WINCH and CHLD, and ignores USR1 if told so; ends with 7 when the file `go` is there.
#include <signal.h>
#include <time.h>
#include <unistd.h>
static void on(int unused) { (void)unused; }
int main(int argc, char **argv) {
    (void)argv;
    for (int s = 1; s < 32; s++) signal(s, SIG_DFL);
    signal(SIGURG, on);
    signal(SIGWINCH, on);
    signal(SIGCHLD, on);
    if (argc > 1) signal(SIGUSR1, SIG_IGN);
    if (write(1, "ready 1\n", 8) != 8) return 2;
    struct timespec t = {0, 3000000};
    while (access("go", F_OK) != 0) nanosleep(&t, NULL);
    return 7;
}
