// left: three children that leave its group, for a group or a session of their own; each has a child that stays in it,
// the third one's is below another that it moved along. On the file `go` all look at their groups, and it exits with 7.
#include "../fixtures/tree.h"
static pid_t group, session; // of the surroundings; others after a restart
static void await(void) { told(1); group = sh->n[0], session = sh->n[1]; }
static int stays(long arg) {
    CHECK_EQ(getpgrp(), sh->n[0]);
    up(); await();
    CHECK_EQ(getpgrp(), group); CHECK_EQ(getsid(0), session);
    return arg;
}
static int between(long arg) {
    pid_t below = child(stays, 1);
    sh->n[2] = 1;
    up(); await();
    CHECK_EQ(getpgrp(), getppid());
    ENDED(below, EXITED(1));
    return arg;
}
static int leaves(long which) {
    pid_t below = which == 3 ? child(between, 1) : child(stays, 1);
    UNTIL(which != 3 || sh->n[2]);
    if (which == 2) MUST(setsid()); else MUST(setpgid(0, 0));
    if (which == 3) MUST(setpgid(below, getpid()));
    up(); await();
    CHECK_EQ(getpgrp(), getpid()); CHECK_EQ(getsid(0), which == 2 ? getpid() : session);
    ENDED(below, EXITED(1));
    return which;
}
int main(void) {
    sh->n[0] = getpgrp(); sh->n[1] = getsid(0);
    CHECK(sh->n[0] != getpid());
    pid_t pid[4];
    for (int i = 1; i < 4; i++) pid[i] = child(leaves, i);
    all_up(7);
    say("ready 1");
    while (access("go", F_OK) != 0) sleep_ms(3);
    sh->n[0] = getpgrp(); sh->n[1] = getsid(0);
    tell(1);
    for (int i = 1; i < 4; i++) ENDED(pid[i], EXITED(i));
    return 7;
}
