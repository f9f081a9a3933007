// polls: waits with a timeout of ten minutes.
#include <poll.h>
#include <unistd.h>
int main(void) {
    if (write(1, "ready 1\n", 8) != 8) return 2;
    return poll(0, 0, 600000);
}
