/* test_file.c: util/file.h. */
#include "util/file.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "folder_testing.h"

static void assert_content(const char *path, const char *expected) {
    char text[256] = "";
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    assert_int_equal(n, strlen(expected));
    assert_string_equal(text, expected);
}

static void a_full_disk_is_an_error(void **state) {
    (void)state;
    error err;
    int fd = open("/dev/full", O_WRONLY);
    assert_int_equal(file_write(fd, "x.bin", "abc", 3, &err), -1);
    close(fd);
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_string_equal(err.text, "x.bin: cannot write: No space left on device.");
}

static void replacing_puts_the_whole_new_file_and_leaves_no_other(void **state) {
    (void)state;
    error err;
    char path[128], temporary[128];
    in_folder(path, "a");
    in_folder(temporary, "a.tmp");
    assert_int_equal(file_replace(path, "a long first version", 20, &err), 0);
    assert_content(path, "a long first version");
    assert_int_equal(file_replace(path, "second", 6, &err), 0);
    assert_content(path, "second");
    assert_int_equal(access(temporary, F_OK), -1);
}

/* The write stops after 4 bytes, as on a disk that fills up in the middle. */
static void a_replacement_that_fails_leaves_the_old_file(void **state) {
    (void)state;
    error err;
    char path[128], temporary[128];
    in_folder(path, "b");
    in_folder(temporary, "b.tmp");
    assert_int_equal(file_replace(path, "old", 3, &err), 0);
    struct rlimit before, small;
    getrlimit(RLIMIT_FSIZE, &before);
    small = (struct rlimit){4, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int result = file_replace(path, "new and longer", 14, &err);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(result, -1);
    assert_non_null(strstr(err.text, "b.tmp: cannot write: File too large"));
    assert_content(path, "old");
    assert_int_equal(access(temporary, F_OK), -1);
}

static void directories_are_made_with_their_parents(void **state) {
    (void)state;
    error err;
    char path[128];
    struct stat about;
    assert_int_equal(file_make_directories(in_folder(path, "p/q/r"), &err), 0);
    assert_int_equal(stat(path, &about), 0);
    assert_true(S_ISDIR(about.st_mode));
    assert_int_equal(file_make_directories(in_folder(path, "p/q/s/"), &err), 0);
    assert_int_equal(stat(in_folder(path, "p/q/s"), &about), 0);
    assert_int_equal(file_make_directories(in_folder(path, "p/q"), &err), 0);
}

static void a_file_in_the_way_of_a_directory_is_named(void **state) {
    (void)state;
    error err;
    char path[128], file[128];
    assert_int_equal(file_replace(in_folder(file, "f"), "", 0, &err), 0);
    assert_int_equal(file_make_directories(in_folder(path, "f/g"), &err), -1);
    assert_non_null(strstr(err.text, "/f is not a directory"));
    assert_int_equal(file_make_directories("/proc/none/of/this", &err), -1);
    assert_string_equal(err.text, "/proc/none: cannot make the directory: No such file or directory.");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_is_an_error),
        cmocka_unit_test(replacing_puts_the_whole_new_file_and_leaves_no_other),
        cmocka_unit_test(a_replacement_that_fails_leaves_the_old_file),
        cmocka_unit_test(directories_are_made_with_their_parents),
        cmocka_unit_test(a_file_in_the_way_of_a_directory_is_named),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
