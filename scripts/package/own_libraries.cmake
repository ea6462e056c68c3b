# cmake -D program=FILE -P own_libraries.cmake: a program that was linked here finds its libraries in
# ../lib, and asks no folder of the build. As `cmake --install` does it, without linking again.
file(RPATH_SET FILE ${program} NEW_RPATH "$ORIGIN/../lib")
