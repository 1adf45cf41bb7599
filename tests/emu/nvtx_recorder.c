/* nvtx_recorder.c: stands in for Nsight Systems: writes the ranges that a program tells NVTX of.
 *
 * NVTX loads the library that NVTX_INJECTION64_PATH names when the first range begins. It writes the file NVTX_RECORD.PID, a line
 * a call: "> NAME" or "<". */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <nvtx3/nvToolsExt.h>

static FILE *record;
static int depth;

static int push(const char *name) {
    fprintf(record, "> %s\n", name);
    return depth++;
}

static int pop(void) {
    fputs("<\n", record);
    return --depth;
}

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
    char path[4096];
    const NvtxExportTableCallbacks *callbacks = get_table(NVTX_ETID_CALLBACKS);
    NvtxFunctionTable functions;
    unsigned n;
    snprintf(path, sizeof path, "%s.%d", getenv("NVTX_RECORD"), getpid());
    record = fopen(path, "w");
    if (!record || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &functions, &n)) return 0;
    *functions[NVTX_CBID_CORE_RangePushA] = (NvtxFunctionPointer)push;
    *functions[NVTX_CBID_CORE_RangePop] = (NvtxFunctionPointer)pop;
    return 1;
}
