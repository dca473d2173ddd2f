// SPDX-License-Identifier: Apache-2.0
// Prints MakePlan's answers for the tests: "groups vocab cores" in each line of the input.
#include <cstdio>

#include "contrastive_scoring.h"

int main()
{
    unsigned long long groups;
    unsigned long long vocab;
    unsigned long long cores;
    while (std::scanf("%llu %llu %llu", &groups, &vocab, &cores) == 3) {
        const vllm_cold::Plan plan = vllm_cold::MakePlan(groups, vocab, cores);
        std::printf("%u %u %u %u %llu %llu %d\n", plan.segments, plan.segmentLength, plan.blocks,
                    plan.mergeBlocks, static_cast<unsigned long long>(plan.slotBytes),
                    static_cast<unsigned long long>(plan.listBytes), plan.together);
    }
    return 0;
}
